/* S2-Attention: a window of blocks and a residue class of blocks for each key head, or distances from the window. */
#include "sheets.h"

static int64_t at_least_0(int64_t x)
{
    return x < 0 ? 0 : x;
}

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    int64_t block = sheet_integer(call, "block", 0, 64), local = sheet_integer(call, "local", 0, 32);
    int64_t stride = sheet_integer(call, "stride", 0, 8), mode = sheet_integer(call, "mode", 0, 0);
    int64_t right = sheet_integer(call, "local_right", 0, 0), P = p / block, J = j / block, head, step;
    const sheet_param *pattern = sheet_tensor(call, "pattern");
    bool causal = sheet_integer(call, "causal", 0, 1) == 1;

    (void)plan, (void)b;
    if (causal && j > p) return false;
    if (right == 0) right = local;
    head = h / (call->H / call->Hkv);
    if (head >= call->Hkv - sheet_integer(call, "dense_heads", 0, 0)) return true;
    if (pattern) {
        int64_t n = pattern->dims[1];
        return pattern->data[((pattern->dims[0] > 1 ? head : 0) * n + P) * n + J] != 0;
    }
    if (mode == 2 || (mode == 0 && !causal))
        return (at_least_0(P - J - local + 1) + at_least_0(J - P - right + 1)) % stride == 0;
    step = stride / call->H < 1 ? 1 : stride / call->H;
    if (sheet_integer(call, "homo", 0, 0)) head = 0;
    if (P - J < local && J - P < right) return true;
    return (J + head * step + sheet_integer(call, "offset", 0, 0)) % stride == 0;
}

static bool forward(sheet_call *call)
{
    bool causal = sheet_integer(call, "causal", 0, 1) == 1;

    if (call->causal && !causal) return false;
    if (sheet_integer(call, "dense_heads", 0, 0) > call->Hkv) return false;
    if (causal && sheet_integer(call, "local_right", 0, 0) > 0) return false;
    return sheet_attend(call, sees, NULL);
}

const sheet sheet_s2 = {"s2", forward};

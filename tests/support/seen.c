#include "support/seen.h"

#include <stdio.h>

void test_seen(fv_ctx *ctx, const char *spec, const fv_attention_args *args, int64_t b, int64_t h, int64_t i,
               const char *expected)
{
    char seen[1024] = "";
    size_t length = 0;
    fv_attention *attention;
    fv_tensor map;
    void *owned;

    assert_ok(fv_attention_new(spec, &attention));
    if (fv_attention_map(ctx, attention, args, &map, &owned) != FV_OK) fail_msg("%s: %s", spec, fv_error());
    for (int64_t j = 0; j < map.dims[3] && length < sizeof seen - 8; j++)
        if (*(uint8_t *)fv_at(&map, map.dims[0] > 1 ? b : 0, map.dims[1] > 1 ? h : 0, i, j))
            length += (size_t)snprintf(seen + length, sizeof seen - length, "%s%d", length ? " " : "", (int)j);
    fv_release(owned);
    fv_attention_free(attention);
    if (strcmp(seen, expected) != 0) fail_msg("%s, query %d: expected keys %s, got %s", spec, (int)i, expected, seen);
}

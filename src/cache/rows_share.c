/* Rows that several streams hold. */
#include "cache/rows.h"

fv_status fv_rows_share(fv_rows *to, fv_rows *from, int64_t length)
{
    for (int64_t g = 0; g < to->options.heads; g++) {
        int64_t count = fv_rows_below(from, g, length);
        if (count != length)
            return fv_fail(FV_E_ARGUMENT, "lending %lld rows: only %lld of them are held", (long long)length,
                           (long long)count);
        to->head[g] = (fv_rows_head){.count = length, .top = length};
        for (int side = 0; side < 2; side++)
            memcpy(to->side[side].memory + (size_t)g * to->side[side].reserved,
                   from->side[side].memory + (size_t)g * from->side[side].reserved +
                       (size_t)from->head[g].first * from->side[side].row_bytes,
                   (size_t)length * to->side[side].row_bytes);
        memcpy(to->position + g * to->options.capacity, fv_rows_positions(from, g), (size_t)length * sizeof(int32_t));
    }
    return FV_OK;
}

/* Quantised weights laid out anew for the CPU's kernels: sixteen rows side by side, so that one vector holds the same
 * place of each.  The same bits as in the file (integer scales of K blocks in bytes); about the same size.
 *
 * A group of 16 rows is a run of blocks, so that products read one stream: a block's scales, then the integers of its
 * parts of 32 columns.  A part's integers are vectors of 16 dwords, a dword per row: 4 dwords of nibbles (8 columns
 * each; nibble j of the low half is column 2j, of the high half column 2j + 1), or 8 of bytes (4 columns each: 0 2 1 3,
 * so that the bytes of a 16-bit half are read as columns 2j, 2j + 1 of two pairs), followed by planes of further bits,
 * with column 2j in the low half and 2j + 1 in the high one. */
#ifndef FV_PACKED_H
#define FV_PACKED_H

#include "base/tensor.h"

enum { FV_PACK_ROWS = 16, FV_PACK_COLUMNS = 32 };

typedef struct fv_packed {
    fv_dtype dtype;
    int64_t rows, columns; /* of the weight */
    int64_t group_bytes;
    const uint8_t *data; /* NULL: there is none.  Aligned to 64. */
} fv_packed;

/* Bytes of a part's integers and of a block's scales, for 16 rows; parts in a block.  false: no packed form. */
bool fv_packed_format(fv_dtype dtype, int64_t *part_bytes, int64_t *scale_bytes, int64_t *parts);

/* Bytes that weight [rows, columns] takes packed (a multiple of 64); 0: it has no packed form. */
size_t fv_packed_bytes(const fv_tensor *weight);

/* Describes the packed form that starts at `data` (filled by fv_pack_group). */
fv_packed fv_packed_at(const fv_tensor *weight, const void *data);
void fv_pack_group(const fv_tensor *weight, const fv_packed *packed, int64_t group);

static inline int64_t fv_packed_groups(const fv_packed *p)
{
    return (p->rows + FV_PACK_ROWS - 1) / FV_PACK_ROWS;
}

#endif

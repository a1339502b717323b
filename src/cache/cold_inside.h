/* What cold.c and cold_read.c share: where a cold row lies. */
#ifndef FV_COLD_INSIDE_H
#define FV_COLD_INSIDE_H

#include "cache/cold.h"

/* Rows from .. from+count-1, cut ahead of their packing. */
struct cold_block {
    int64_t from, count;
    void *memory; /* what scale and zero lie in; NULL: its rows are not packed yet */
    float *scale; /* [channels]: keys of all heads, then values of all heads */
    int32_t *zero;
    uint8_t *q; /* [count, channels]; NULL: in the file */
};

struct fv_cold {
    fv_cold_options options;
    int64_t count;    /* rows that are cold */
    int64_t channels; /* of a token's row */
    size_t record;    /* bytes of a record */
    float **input;    /* of rows from FV_COLD_BLOCK i on: [FV_COLD_BLOCK, width] */
    bool *few;        /* [noted] */
    int64_t noted, width, inputs, input_room, few_room;
    struct cold_block *block;
    int64_t blocks, packed, written, block_room; /* of blocks: packed ones come first, of them those in the file */
    fv_record *records;                          /* of rows from options.computed on */
    int64_t recorded, record_room;
    size_t used, host;
    fv_read_ahead *ahead; /* of rows at these positions */
    int32_t *ahead_position;
    int64_t ahead_count, ahead_room;
};

/* Bytes of a token's keys (0) or values (1) as they are stored. */
static inline size_t fv_cold_side(const fv_rows *rows, int side)
{
    return (size_t)rows->options.heads * rows->side[side].row_bytes;
}

/* Rows that are there, cold ones too. */
static inline int64_t fv_cold_all(const fv_rows *rows)
{
    return rows->cold->count + rows->head[0].count;
}

static inline float *fv_cold_input(const fv_cold *cold, int64_t row)
{
    return cold->input[row / FV_COLD_BLOCK] + row % FV_COLD_BLOCK * cold->width;
}

void fv_cold_stop_ahead(struct fv_cold *cold);

#endif

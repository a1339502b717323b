/* Looking for blocks of keys in a tree: as many groups of blocks as are wanted are halved until all are single blocks;
 * each time those halves stay that match best, a half being known by one block of it.  Of n blocks and `top` wanted
 * ones that takes log2(n / top) rounds. */
#ifndef FV_TREE_H
#define FV_TREE_H

#include "attention/mechanism.h"

typedef enum fv_tree_rep { FV_TREE_FIRST = 0, FV_TREE_CENTRE, FV_TREE_LAST } fv_tree_rep;

/* The best match of a block is the largest product of a row of x with a key of the block.  Ties go to the lower block.
 * With blocks for no more than `top` all are chosen. */
typedef struct fv_tree {
    fv_tensor x;          /* [B,Hkv,G,n,R,D] f32: the rows of each of n lists of G heads that share keys */
    fv_tensor k;          /* [B,Hkv,M,D], anything rows are stored as */
    int64_t first, block; /* key with which the blocks begin, keys of a block */
    const int64_t *end;   /* [n] first key behind the blocks of a list: its last block may be short */
    fv_tree_rep rep;
    fv_tensor chosen; /* [B,Hkv*G,n,top] i32: blocks, ascending, -1 behind the last */
} fv_tree;
fv_status fv_tree_search(fv_ctx *ctx, const fv_tree *tree);

#endif

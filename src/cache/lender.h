/* A file in memory whose pages several streams may map, and counts of who holds each page.  A place in the file is used
 * once: what is given back leaves a hole, and new pages come from behind.  Any thread may call. */
#ifndef FV_LENDER_H
#define FV_LENDER_H

#include "base/memory.h"

typedef struct fv_lender fv_lender;
typedef struct fv_block fv_block; /* pages that are counted: nobody writes them */

/* FV_E_UNSUPPORTED where the system has no such files, FV_E_MEMORY.  Lives until its last user lets it go. */
fv_status fv_lender_new(fv_lender **lender);
fv_lender *fv_lender_hold(fv_lender *lender);
void fv_lender_drop(fv_lender *lender); /* also NULL */

/* The place of `bytes` fresh bytes, a multiple of the page; zero and not there until they are written. */
int64_t fv_lender_take(fv_lender *lender, size_t bytes);
/* Maps them at an address, in place of what is there, or anywhere (NULL).  NULL: refused. */
char *fv_lender_map(const fv_lender *lender, void *at, size_t bytes, int64_t place, bool writable);
/* Writes bytes at a place; false: refused. */
bool fv_lender_write(const fv_lender *lender, const char *from, size_t bytes, int64_t place);
void fv_lender_punch(const fv_lender *lender, int64_t place, size_t bytes); /* the pages go back */

/* Maps in this process that came of sharing: the system allows some 65,000 in all.  Adds, and says how many there are.
 */
int64_t fv_lender_count(int64_t more);
enum { FV_MOST_MAPS = 32768 };

/* Counts pages at a place, each held once.  FV_E_MEMORY. */
fv_status fv_block_new(fv_lender *lender, int64_t place, size_t bytes, size_t page, fv_block **block);
fv_lender *fv_block_lender(const fv_block *block);
void fv_block_hold(fv_block *block, int64_t place, size_t bytes); /* once more */
/* Once less: pages that nobody holds go back, and the block with the last of them. */
void fv_block_drop(fv_block *block, int64_t place, size_t bytes);
/* If nobody else holds these pages they are taken out of the block, for the caller to write; otherwise false. */
bool fv_block_claim(fv_block *block, int64_t place, size_t bytes);
size_t fv_block_shared(const fv_block *block, int64_t place, size_t bytes); /* bytes in pages held more than once */

#endif

/* Packing a model's matrices: one region of memory, in huge pages where the system gives them, filled by all threads.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/context.h"
#include "models/model.h"
#include "ops/backend.h"

enum {
    HUGE_PAGE = 2 << 20,
    ITEM_BYTES = 1 << 20,
    AT_ONCE = 256, /* items of a region */
};

struct fv_model_packs {
    void *memory;
    size_t bytes;
};

static const size_t places[] = {offsetof(fv_layer, q),   offsetof(fv_layer, k),    offsetof(fv_layer, v),
                                offsetof(fv_layer, o),   offsetof(fv_layer, gate), offsetof(fv_layer, up),
                                offsetof(fv_layer, down)};
enum { PLACES = sizeof places / sizeof *places };

/* The n-th matrix of the model: those of the layers, then the output's. */
static fv_weight *weight_at(const fv_model *model, int64_t n)
{
    if (n == model->sizes.layers * PLACES) return (fv_weight *)(uintptr_t)&model->output;
    return (fv_weight *)((char *)&model->layers[n / PLACES] + places[n % PLACES]);
}

struct job {
    const fv_ctx *ctx;
    fv_weight *weight;
    fv_packed packed;
    int64_t chunk;    /* groups in an item */
    int64_t item_end; /* items of this matrix and those before it */
};

struct jobs {
    struct job *job;
    int64_t count, first_item;
};

/* The file's pages of some rows are not needed any more; they can be read again. */
static void give_back(const fv_tensor *t, int64_t row, int64_t rows)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    size_t row_bytes = (size_t)(t->strides[0] / fv_dtype_block(t->dtype)) * fv_dtype_block_bytes(t->dtype);
    uintptr_t from = (uintptr_t)t->data + (size_t)row * row_bytes, to = from + (size_t)rows * row_bytes;

    from = (from + page - 1) / page * page;
    to = to / page * page;
    if (to > from) (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

static void pack_item(void *user, int64_t item, int thread)
{
    const struct jobs *jobs = user;
    const struct job *job = jobs->job;

    (void)thread;
    item += jobs->first_item;
    while (item >= job->item_end)
        job++;
    const fv_tensor *tensor = &job->weight->tensor;
    int64_t groups = fv_packed_groups(&job->packed), items = fv_ceil_div(groups, job->chunk);
    int64_t from = (item - (job->item_end - items)) * job->chunk, to = fv_min(from + job->chunk, groups);
    for (int64_t group = from; group < to; group++)
        job->ctx->backend->pack(job->ctx, tensor, &job->packed, group);
    give_back(tensor, from * FV_PACK_ROWS, fv_min(to * FV_PACK_ROWS, job->packed.rows) - from * FV_PACK_ROWS);
}

/* Matrices may be small: a region takes many of them. */
static void pack_all(fv_ctx *ctx, const fv_model *model, struct jobs *jobs, char *memory)
{
    int64_t items = 0;

    for (int64_t n = 0; n <= model->sizes.layers * PLACES; n++) {
        fv_weight *w = weight_at(model, n);
        size_t bytes = fv_packed_bytes(&w->tensor);
        if (bytes == 0) continue;
        struct job *job = &jobs->job[jobs->count++];
        *job = (struct job){.ctx = ctx, .weight = w, .packed = fv_packed_at(&w->tensor, memory)};
        job->chunk = fv_max(ITEM_BYTES / job->packed.group_bytes, 1);
        job->item_end = items += fv_ceil_div(fv_packed_groups(&job->packed), job->chunk);
        memory += bytes;
    }
    for (; jobs->first_item < items; jobs->first_item += AT_ONCE) {
        int64_t end = fv_min(jobs->first_item + AT_ONCE, items);
        fv_run(ctx, end - jobs->first_item, pack_item, jobs);
        fv_ctx_report(ctx, "weights", (double)end / (double)items);
    }
    for (int64_t n = 0; n < jobs->count; n++)
        jobs->job[n].weight->packed = jobs->job[n].packed;
}

static bool take_memory(struct fv_model_packs *packs, size_t bytes, char **memory)
{
    packs->bytes = bytes + HUGE_PAGE;
    packs->memory = mmap(NULL, packs->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (packs->memory == MAP_FAILED) return false;
    *memory = (char *)(((uintptr_t)packs->memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    (void)madvise(*memory, bytes, MADV_HUGEPAGE);
    return true;
}

void fv_model_pack(fv_ctx *ctx, const fv_model *model)
{
    fv_model *own = (fv_model *)(uintptr_t)model; /* what is written stands apart from what others read */
    struct jobs jobs = {0};
    size_t bytes = 0;
    char *memory;

    if (!ctx->backend->linear) return;
    pthread_mutex_lock(&own->mutex);
    for (int64_t n = 0; !own->packs && n <= model->sizes.layers * PLACES; n++)
        bytes += fv_packed_bytes(&weight_at(model, n)->tensor);
    if (bytes > 0 && FV_ALLOC(jobs.job, model->sizes.layers * PLACES + 1) == FV_OK &&
        FV_ZALLOC(own->packs, 1) == FV_OK) {
        if (take_memory(own->packs, bytes, &memory)) {
            pack_all(ctx, model, &jobs, memory);
        } else {
            fv_free(own->packs);
            own->packs = NULL;
        }
    }
    fv_free(jobs.job);
    pthread_mutex_unlock(&own->mutex);
}

void fv_model_give_back_embedding(const fv_model *model)
{
    if (model->packs) give_back(&model->embedding, 0, model->embedding.dims[0]);
}

void fv_model_unpack(fv_model *model)
{
    if (!model->packs) return;
    munmap(model->packs->memory, model->packs->bytes);
    fv_free(model->packs);
    model->packs = NULL;
}

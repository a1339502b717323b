#include "support/plans.h"

static int64_t between(fv_random *random, int64_t low, int64_t high)
{
    return low + fv_random_below(random, high - low + 1);
}

static void *take(fv_ctx *ctx, int64_t count, size_t size)
{
    void *memory = NULL;

    assert_ok(fv_arena_alloc(ctx->arena, &memory, count, size));
    memset(memory, 0, (size_t)count * size);
    return memory;
}

#define TAKE(type, count) ((type *)take(ctx, (count), sizeof(type)))

/* Random ascending starts of `parts` parts of `total`; parts may be empty. */
static int64_t *starts(fv_ctx *ctx, fv_random *random, int64_t parts, int64_t total, int64_t widest)
{
    int64_t *start = TAKE(int64_t, parts + 1);

    for (int64_t n = 0; n < parts; n++) {
        int64_t left = (parts - 1 - n) * widest, need = total - start[n];
        start[n + 1] = start[n] + between(random, need > left ? need - left : 0, need < widest ? need : widest);
    }
    assert_int_equal(start[parts], total);
    return start;
}

int64_t test_plan_grid(fv_random *random, fv_grid *grid)
{
    int64_t count = 1;

    *grid = (fv_grid){.rank = (int)between(random, 1, 3), .unclipped = between(random, 0, 3) == 0};
    for (int a = 0; a < grid->rank; a++) {
        int64_t most = grid->rank == 1 ? 200 : grid->rank == 2 ? 17 : 8;
        grid->dims[a] = between(random, 1, most);
        grid->dilation[a] = between(random, 0, 2) ? 0 : between(random, 1, fv_min(3, grid->dims[a]));
        grid->window[a] = between(random, 1, grid->dims[a] / fv_max(1, grid->dilation[a]));
        grid->causal[a] = between(random, 0, 1);
        grid->truncated[a] = between(random, 0, 2) == 0;
        if (grid->truncated[a] && !grid->causal[a]) grid->window[a] += between(random, 0, 6);
        grid->stride[a] = between(random, 0, grid->window[a]);
        count *= grid->dims[a];
        if (grid->dilation[a] > 1 || between(random, 0, 3)) continue;
        int64_t step = between(random, 0, 3), first = between(random, 0, grid->dims[a] - 1);
        grid->query_step[a] = step;
        grid->query_first[a] = first;
        grid->query_count[a] = between(random, 1, (grid->dims[a] - first - 1) / (step ? step : 1) + 1);
        grid->stride_first[a] = between(random, -3, first);
    }
    return count;
}

static int64_t grid_queries(const fv_grid *grid, int a)
{
    return grid->query_count[a] ? grid->query_count[a] : grid->dims[a];
}

int64_t test_plan_grid_queries(const fv_grid *grid)
{
    int64_t count = 1;

    for (int a = 0; a < grid->rank; a++)
        count *= grid_queries(grid, a);
    return count;
}

static void random_lists(fv_ctx *ctx, fv_random *random, unsigned kinds, int64_t B, int64_t H, int64_t Hkv, int64_t N,
                         int64_t M, fv_lists *lists)
{
    static const int64_t blocks[] = {1, 1, 3, 16, 64, 100};
    int64_t choice[3] = {1, Hkv, H}, rows, batches, slots = between(random, 1, 2 * N + 3), entries = 0;
    double density = fv_random_uniform(random);

    lists->query_block = blocks[between(random, 0, 5)];
    lists->key_block = blocks[between(random, 0, 5)];
    lists->heads = choice[between(random, 0, 2)];
    batches = between(random, 0, 1) ? B : 1;
    lists->groups = (N + lists->query_block - 1) / lists->query_block;
    lists->key_blocks = (M + lists->key_block - 1) / lists->key_block;
    if (kinds & PLAN_RAGGED) {
        lists->groups += between(random, 0, 3);
        lists->key_blocks += between(random, 0, 3);
        lists->query_start = starts(ctx, random, lists->groups, N, lists->query_block);
        lists->key_start = starts(ctx, random, lists->key_blocks, M, lists->key_block);
    }
    if (kinds & PLAN_SLOTS) {
        lists->groups = (slots + lists->query_block - 1) / lists->query_block + between(random, 0, 3);
    }
    lists->head_stride = lists->heads > 1 ? lists->groups : 0;
    lists->batch_stride = batches > 1 ? lists->groups * lists->heads : 0;
    rows = batches * lists->heads * lists->groups;
    if (kinds & PLAN_SLOTS) {
        int64_t *start = TAKE(int64_t, rows + 1), cells = batches * lists->heads;
        int32_t *index = TAKE(int32_t, cells * slots);
        for (int64_t c = 0; c < cells; c++) {
            int64_t *part = starts(ctx, random, lists->groups, slots, lists->query_block);
            for (int64_t g = 0; g <= lists->groups; g++)
                start[c * lists->groups + g] = c * slots + part[g];
        }
        for (int64_t n = 0; n < cells * slots; n++)
            index[n] = (int32_t)fv_random_below(random, N);
        lists->query_start = start;
        lists->query_index = index;
        if (between(random, 0, 1)) {
            int32_t *from = TAKE(int32_t, cells * slots), *to = TAKE(int32_t, cells * slots);
            for (int64_t n = 0; n < cells * slots; n++) {
                from[n] = (int32_t)between(random, -2, M);
                to[n] = (int32_t)(from[n] + between(random, 0, M + 2));
            }
            lists->slot_from = from;
            lists->slot_to = to;
        }
    }

    int64_t *row_start = TAKE(int64_t, rows + 1);
    int32_t *entry = TAKE(int32_t, rows * lists->key_blocks);
    for (int64_t row = 0; row < rows; row++) {
        double here = between(random, 0, 4) ? density : fv_random_uniform(random) < 0.5 ? 0 : 1;
        for (int64_t block = 0; block < lists->key_blocks; block++)
            if (fv_random_uniform(random) < here) entry[entries++] = (int32_t)block;
        row_start[row + 1] = entries;
    }
    lists->row_start = row_start;
    lists->entry = entry;
    if (kinds & PLAN_TILES) {
        int64_t count = 5;
        lists->tile_words = (lists->query_block * lists->key_block + 63) / 64;
        uint64_t *tiles = TAKE(uint64_t, count * lists->tile_words);
        int32_t *tile = TAKE(int32_t, entries);
        for (int64_t n = 0; n < count * lists->tile_words; n++)
            tiles[n] = (uint64_t)fv_random_u32(random) << 32 | fv_random_u32(random);
        for (int64_t n = 0; n < entries; n++)
            tile[n] = (int32_t)between(random, 0, count);
        lists->tiles = tiles;
        lists->tile = tile;
    }
    if (kinds & PLAN_ENTRY_BIAS) {
        float *bias = TAKE(float, entries);
        for (int64_t n = 0; n < entries; n++)
            bias[n] = (float)between(random, -1, 1);
        lists->entry_bias = bias;
    }
}

void test_plan_random(fv_ctx *ctx, fv_random *random, unsigned kinds, int64_t B, int64_t H, int64_t Hkv, int64_t N,
                      int64_t M, fv_plan *plan)
{
    fv_grid grid = plan->grid; /* from test_plan_grid */

    *plan = (fv_plan){.causal = kinds & PLAN_CAUSAL};
    if (kinds & PLAN_OFFSET) plan->offset = between(random, -5, M + 5);
    if (kinds & PLAN_GRID) {
        plan->grid = grid;
        plan->offset = between(random, 0, test_plan_grid_queries(&grid) - N);
    }
    if (kinds & (PLAN_WINDOW | PLAN_HEAD_WINDOWS))
        plan->window = (fv_window){.sink = between(random, 0, 5),
                                   .window = between(random, 1, M + 3),
                                   .block = between(random, 0, 1) ? 0 : between(random, 1, 20)};
    if (kinds & PLAN_HEAD_WINDOWS) {
        int64_t *sinks = TAKE(int64_t, Hkv), *windows = TAKE(int64_t, Hkv);
        for (int64_t h = 0; h < Hkv; h++) {
            sinks[h] = between(random, 0, 5);
            windows[h] = between(random, 0, 30);
        }
        plan->window.heads = (int)Hkv;
        plan->window.head_sink = sinks;
        plan->window.head_window = windows;
    }
    if (kinds & PLAN_POSITIONS) {
        int32_t *position = TAKE(int32_t, M);
        for (int64_t j = 0; j < M; j++)
            position[j] = kinds & PLAN_DISORDER ? (int32_t)fv_random_below(random, M + 5)
                                                : (int32_t)((j ? position[j - 1] : 0) + between(random, 0, 2));
        plan->key_position = position;
    }
    if (kinds & PLAN_SEGMENTS) {
        int32_t *of_query = TAKE(int32_t, N), *of_key = TAKE(int32_t, M);
        for (int64_t j = 0; j < M; j++)
            of_key[j] = (int32_t)(kinds & PLAN_DISORDER ? between(random, 0, 2) : j * 4 / M);
        for (int64_t i = 0; i < N; i++)
            of_query[i] = (int32_t)(kinds & PLAN_DISORDER ? between(random, 0, 3) : i * 5 / N);
        plan->query_segment = of_query;
        plan->key_segment = of_key;
    }
    if (kinds & PLAN_INTERVALS) {
        int32_t *from = TAKE(int32_t, N), *to = TAKE(int32_t, N);
        for (int64_t i = 0; i < N; i++) {
            from[i] = (int32_t)between(random, -2, M);
            to[i] = (int32_t)between(random, 0, M + 2);
        }
        plan->key_from = between(random, 0, 3) ? from : NULL;
        plan->key_to = between(random, 0, 3) ? to : NULL;
    }
    if (kinds & PLAN_LIFETIMES) {
        int32_t *born = TAKE(int32_t, M), *gone = TAKE(int32_t, M);
        for (int64_t j = 0; j < M; j++) {
            born[j] = (int32_t)between(random, 0, N);
            gone[j] = born[j] + (int32_t)between(random, 0, N);
        }
        plan->born = between(random, 0, 3) ? born : NULL;
        plan->gone = between(random, 0, 3) ? gone : NULL;
    }
    if (kinds & PLAN_LISTS) random_lists(ctx, random, kinds, B, H, Hkv, N, M, &plan->lists);
}

unsigned test_plan_kinds(fv_random *random)
{
    unsigned kinds = fv_random_u32(random) & fv_random_u32(random) & ((1u << (PLAN_KINDS - 1)) - 1);

    if (between(random, 0, 3) == 0) kinds |= PLAN_GRID;
    if (kinds & PLAN_GRID) kinds &= ~(unsigned)PLAN_OFFSET;
    if (!(kinds & PLAN_LISTS)) kinds &= ~(unsigned)(PLAN_RAGGED | PLAN_TILES | PLAN_ENTRY_BIAS | PLAN_SLOTS);
    return kinds;
}

/* ---- the naive predicate --------------------------------------------------------------------------------------- */

static int64_t block_of(int64_t position, int64_t block)
{
    int64_t n = 0;

    while (position < n * block)
        n--;
    while (position >= (n + 1) * block)
        n++;
    return n;
}

static bool grid_axis_sees(const fv_grid *grid, int a, int64_t query, int64_t y)
{
    bool own = grid->query_count[a] > 0;
    int64_t zero = own ? grid->stride_first[a] : 0; /* of groups */
    int64_t x = own ? grid->query_first[a] + query * (grid->query_step[a] ? grid->query_step[a] : 1) : query;
    int64_t d = grid->dilation[a] ? grid->dilation[a] : 1, s = grid->stride[a] ? grid->stride[a] : 1;
    int64_t w = grid->window[a], X = grid->dims[a], g = x % d, i = x / d, j = y / d, leader, start, end;
    int64_t n = X / d + (g < X % d ? 1 : 0);

    if (y % d != g) return false;
    leader = (i - zero) / s * s + zero + (grid->causal[a] ? s - 1 : s / 2);
    if (leader > n - 1 && !(grid->causal[a] && grid->unclipped)) leader = n - 1;
    if (grid->causal[a]) {
        start = leader - w + 1 > 0 ? leader - w + 1 : 0;
        end = i + 1;
    } else {
        int64_t L = w / 2, R = w / 2 + w % 2 - 1;
        if (grid->truncated[a]) leader = (i - zero) / s * s + zero + s / 2;
        if (grid->truncated[a]) return leader - L <= j && j <= leader + R;
        start = leader - L > 0 ? leader - L : 0;
        if (leader + R >= n) start = n - w;
        end = start + w;
    }
    return start <= j && j < end;
}

static int64_t list_row_of(const fv_lists *lists, int64_t H, int64_t b, int64_t h, int64_t i, int64_t *place)
{
    int64_t heads = lists->heads ? lists->heads : 1,
            first = b * lists->batch_stride + h * heads / H * lists->head_stride;

    for (int64_t g = 0; g < lists->groups; g++) {
        int64_t from = g * lists->query_block, to = from + lists->query_block;
        if (lists->query_index) {
            from = lists->query_start[first + g] - lists->query_start[first];
            to = lists->query_start[first + g + 1] - lists->query_start[first];
        } else if (lists->query_start) {
            from = lists->query_start[g];
            to = lists->query_start[g + 1];
        }
        if (i < from || i >= to) continue;
        *place = i - from;
        return first + g;
    }
    fail_msg("row %lld belongs to no group", (long long)i);
    return -1;
}

int64_t test_plan_rows(const fv_plan *plan, int64_t N)
{
    const fv_lists *lists = &plan->lists;

    return lists->query_index ? lists->query_start[lists->groups] - lists->query_start[0] : N;
}

int64_t test_plan_query(const fv_plan *plan, int64_t H, int64_t b, int64_t h, int64_t i)
{
    const fv_lists *lists = &plan->lists;
    int64_t heads = lists->heads ? lists->heads : 1;

    if (!lists->query_index) return i;
    return lists->query_index[lists->query_start[b * lists->batch_stride + h * heads / H * lists->head_stride] + i];
}

static bool lists_see(const fv_lists *lists, int64_t H, int64_t b, int64_t h, int64_t i, int64_t j, double *bias)
{
    int64_t place = 0, row = list_row_of(lists, H, b, h, i, &place);

    if (lists->slot_from) {
        int64_t slot = lists->query_start[row] + place;
        if (j < lists->slot_from[slot] || j >= lists->slot_to[slot]) return false;
    }
    for (int64_t n = lists->row_start[row]; n < lists->row_start[row + 1]; n++) {
        int64_t block = lists->entry[n], from = block * lists->key_block, to = from + lists->key_block;
        if (lists->key_start) {
            from = lists->key_start[block];
            to = lists->key_start[block + 1];
        }
        if (j < from || j >= to) continue;
        if (lists->entry_bias) *bias = lists->entry_bias[n];
        if (!lists->tile || lists->tile[n] == 0) return true;
        int64_t bit = place * lists->key_block + j - from;
        return lists->tiles[(lists->tile[n] - 1) * lists->tile_words + bit / 64] >> (bit % 64) & 1;
    }
    return false;
}

bool test_plan_sees(const fv_plan *plan, int64_t H, int64_t b, int64_t h, int64_t i, int64_t j, double *bias)
{
    int64_t query = test_plan_query(plan, H, b, h, i), p = query + plan->offset;
    int64_t at = plan->key_position ? plan->key_position[j] : j, sink = plan->window.sink;
    int64_t window = plan->window.window, block = plan->window.block > 1 ? plan->window.block : 1;

    *bias = 0;
    if (plan->causal && at > p) return false;
    if (plan->window.heads > 0) {
        sink = plan->window.head_sink[h * plan->window.heads / H];
        window = plan->window.head_window[h * plan->window.heads / H];
    }
    if (window > 0 && at >= sink) {
        int64_t distance = block_of(p, block) - block_of(at, block);
        if (distance >= window) return false;
        if (!plan->causal && -distance >= window) return false;
    }
    if (plan->grid.rank > 0) {
        const fv_grid *grid = &plan->grid;
        int64_t tokens = 1, x = p, y = at;
        for (int a = 0; a < grid->rank; a++)
            tokens *= grid->dims[a];
        for (int a = grid->rank - 1; a >= 0 && at < tokens; a--) {
            if (!grid_axis_sees(grid, a, x % grid_queries(grid, a), y % grid->dims[a])) return false;
            x /= grid_queries(grid, a);
            y /= grid->dims[a];
        }
    }
    if (plan->query_segment && plan->query_segment[query] != plan->key_segment[j]) return false;
    if (plan->key_from && j < plan->key_from[query]) return false;
    if (plan->key_to && j >= plan->key_to[query]) return false;
    if (plan->born && plan->born[j] > p) return false;
    if (plan->gone && plan->gone[j] <= p) return false;
    return !plan->lists.row_start || lists_see(&plan->lists, H, b, h, i, j, bias);
}

#include "hooks/hooks.h"

#include <string.h>

void fv_listen(fv_listener **list, fv_listener *listener)
{
    while (*list)
        list = &(*list)->next;
    listener->next = NULL;
    *list = listener;
}

int64_t fv_selected_rows(const fv_selector *select, int64_t position, int64_t count, int64_t *first)
{
    int64_t end = select->row_to > 0 ? fv_clamp(select->row_to - position, 0, count) : count;

    *first = fv_clamp(select->row_from - position, 0, end);
    return end - *first;
}

/* Whether a selector has any part of what is told. */
static bool concerns(const fv_selector *select, const fv_look *look)
{
    bool hidden = look->point == FV_POINT_HIDDEN, any = hidden;
    int64_t heads = hidden ? 0 : look->call->query_heads, first;

    if (select->phases && !(select->phases & (look->prompt ? FV_IN_PROMPT : FV_IN_STEP))) return false;
    if (!fv_selects(select->layers, look->layer)) return false;
    for (int64_t h = look->head; h < look->head + heads && !any; h++)
        any = fv_selects(select->heads, h);
    return any &&
           fv_selected_rows(select, look->position, hidden ? look->hidden.dims[0] : look->call->queries, &first) > 0;
}

fv_status fv_tell(fv_ctx *ctx, const fv_listener *list, const fv_look *look)
{
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_NONE);
    double spent[FV_PHASES];
    fv_status status = FV_OK;

    memcpy(spent, ctx->spent, sizeof spent);
    for (; list && status == FV_OK; list = list->next)
        if (list->points & look->point && concerns(&list->select, look)) status = list->hear(list->user, look);
    memcpy(ctx->spent, spent, sizeof spent);
    fv_phase_enter(ctx, before);
    return status;
}

#include "models/history.h"

fv_status fv_history_reserve(fv_history *history, int64_t more)
{
    FV_TRY(FV_GROW(history->ids, history->tokens_room, history->tokens + more));
    FV_TRY(FV_GROW(history->position, history->held_room, history->held + more));
    for (int64_t i = 0; i < more; i++)
        history->position[history->held + i] = (int32_t)(history->tokens + i);
    return FV_OK;
}

void fv_history_add(fv_history *history, const int32_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        history->ids[history->tokens + i] = ids[i];
    history->tokens += count;
    history->held += count;
}

void fv_history_clear(fv_history *history)
{
    history->tokens = history->held = 0;
}

void fv_history_free(fv_history *history)
{
    fv_free(history->ids);
    fv_free(history->position);
    *history = (fv_history){0};
}

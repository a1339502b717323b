/* Attention whose queries and keys come from elsewhere than the values: as a mechanism, dense; what differs is the
 * layer that makes them.  arXiv 2510.11602, static queries and keys. */
#include "attention/mechanism.h"

static const fv_option options[] = {FV_OPTIONS_END};

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    (void)ctx, (void)call, (void)plan_, (void)attend;
    return FV_OK;
}

const fv_mechanism fv_mechanism_staticqk = {
    .name = "staticqk",
    .title = "Static queries and keys",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .family = FV_DENSE,
    .traits = FV_STATIC_PLAN | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula = "softmax(scale q k^T) v, with q and k of the embeddings instead of the layer's input",
    .cost = "as dense",
    .options = options,
    .plan = plan,
};

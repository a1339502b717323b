/* Every verb, one file each. */
#ifndef APP_VERBS_H
#define APP_VERBS_H

#include "app/cli.h"

extern const cli_verb verb_run, verb_compare, verb_recommend, verb_eval_ppl, verb_eval_needle, verb_eval_cache,
    verb_eval_recall, verb_inspect, verb_inspect_srh, verb_inspect_hylra, verb_inspect_moa, verb_inspect_influence,
    verb_attend, verb_apply, verb_list, verb_show, verb_tokenize, verb_bench, verb_serve;

#endif

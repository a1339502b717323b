/* Cache policies under test: for each a SPEC that bites on a prompt of TOKENS_PROMPT tokens, one that keeps everything,
 * and a naive twin of what it keeps and reads. */
#ifndef FV_POLICIES_H
#define FV_POLICIES_H

#include <stdio.h>

#include "support/tiny_model.h"

enum { TOKENS_PROMPT = 61, TOKENS_ALL = 90 };

/* Makes the twin of a SPEC's options for a model: `begin` fills in twin (user is its own memory), `end` frees it. */
typedef struct policy_case {
    const char *spec, *whole; /* whole: budget >= TOKENS_ALL; NULL where the policy always drops something */
    void (*begin)(const tiny_model *m, tiny_policy *twin);
    void (*end)(tiny_policy *twin);
    /* Selections read few of the rows that are held; the twin says what the last step read: [layers, key_heads, count]
     * after the last token.  NULL: everything held. */
    const bool *(*selected)(const tiny_policy *twin);
} policy_case;

/* Writes the plan file that `@` in a policy's SPECs stands for. */
typedef struct policy_plan {
    const char *policy;
    void (*write)(const tiny_model *m, FILE *file);
} policy_plan;
extern const policy_plan policy_plans[]; /* ended by a policy of NULL */

/* The least gap, relative to them, between a score that a twin took and one that it left, since somebody made this
 * infinite.  Scores in f32 may fall the other way where it is no more than their rounding. */
extern double policy_margin;
void policy_choice(double gap);

/* Marks the k best of the candidates among score[0..count): the largest; of equals the lower, or the higher ones.  Its
 * gap is relative to the larger of the two scores, or to `scale` if that is not 0; equal ones have none. */
void policy_pick(const double *score, const bool *candidate, int64_t count, int64_t k, bool higher, double scale,
                 bool *picked);

/* The first member of a selection's twin: what `choose` says that token c->p reads in layer c->l, in sees[c->l]. */
typedef struct policy_selection {
    void (*choose)(void *user, const tiny_cache *c);
    int64_t layers, key_heads;
    int64_t next[8];                                           /* [layer] one behind the token it last chose for */
    bool sees[8][8][TOKENS_ALL], selected[8 * 8 * TOKENS_ALL]; /* [layer, key-value head, position] */
} policy_selection;

/* `user` begins with a selection and is freed at the end. */
void policy_selection_begin(const tiny_model *m, tiny_policy *twin, void *user,
                            void (*choose)(void *user, const tiny_cache *c));
void policy_selection_end(tiny_policy *twin);
const bool *policy_selection_read(const tiny_policy *twin);

/* NULL-ended.  Those with codes are for models of few channels: each code is a choice. */
extern const policy_case *const policy_cases[], *const policy_code_cases[];

#endif

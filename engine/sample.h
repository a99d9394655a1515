/* Choosing the next token from fp32 logits: greedy, or sampled with temperature, top-k and top-p.
 *
 * Order (transformers'): repetition penalty, EOS banned below min_tokens, then greedy or
 * temperature, top-k, top-p, draw. Among equal logits the lowest id comes first, everywhere, so a
 * result does not depend on a sort. The random number is a function of (seed, row, step) alone: not
 * of the batch, nor of what other rows do. */
#ifndef SL_ENGINE_SAMPLE_H
#define SL_ENGINE_SAMPLE_H
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

struct sl_sampling {
    bool greedy;
    double temperature;        /* > 0 */
    int top_k;                 /* 0: off */
    double top_p;              /* in (0, 1]; 1: off */
    double repetition_penalty; /* > 0; 1: off. A positive logit of a token in the context is divided
                                * by it, a negative one multiplied */
    int min_tokens;            /* EOS cannot come before this many tokens */
    int32_t eos_id;            /* -1: none */
    uint64_t seed;
};

struct sl_sampler; /* scratch for one vocabulary size; one thread at a time */
/* SL_SPEC for settings out of range, each named. */
int sl_sampler_new(const struct sl_sampling *settings, int vocab, struct sl_sampler **ret_sampler,
                   struct sl_err *err);
void sl_sampler_free(struct sl_sampler *s); /* NULL-safe */

/* The token after `context` (prompt and generated tokens; ids < 0, virtual tokens, are passed
 * over), being the row's generated token number `step`, from 0. logits [vocab] are changed. NaN
 * counts as minus infinity; SL_DATA when no logit is above minus infinity. */
int sl_sample(struct sl_sampler *s, float *logits, const int32_t *context, int n_context,
              int64_t row, int64_t step, int32_t *ret_token, struct sl_err *err);

#endif

#include "engine/sample.h"
#include "base/rng.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct candidate {
    float logit;
    int32_t id;
    double p; /* exp(logit - the largest) */
};

struct sl_sampler {
    struct sl_sampling settings;
    int vocab;
    struct candidate *c; /* [vocab] */
    uint64_t *seen;      /* a bit per token of the context */
};

static int check(const struct sl_sampling *s, int vocab, struct sl_err *err)
{
    if (vocab < 1)
        return sl_err_set(err, SL_SPEC, "a vocabulary of %d tokens", vocab);
    if (!s->greedy && !(s->temperature > 0 && s->temperature < INFINITY))
        return sl_err_set(err, SL_SPEC, "inference.temperature must be above 0, not %g",
                          s->temperature);
    if (s->top_k < 0)
        return sl_err_set(err, SL_SPEC, "inference.top_k must be at least 0, not %d", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return sl_err_set(err, SL_SPEC, "inference.top_p must be above 0 and at most 1, not %g",
                          s->top_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty < INFINITY))
        return sl_err_set(err, SL_SPEC, "inference.repetition_penalty must be above 0, not %g",
                          s->repetition_penalty);
    if (s->min_tokens < 0)
        return sl_err_set(err, SL_SPEC, "inference.min_tokens must be at least 0, not %d",
                          s->min_tokens);
    return 0;
}

int sl_sampler_new(const struct sl_sampling *settings, int vocab, struct sl_sampler **ret_sampler,
                   struct sl_err *err)
{
    struct sl_sampler *s;
    int rc = check(settings, vocab, err);

    if (rc)
        return rc;
    s = calloc(1, sizeof *s);
    if (s) {
        s->settings = *settings;
        s->vocab = vocab;
        s->c = calloc((size_t)vocab, sizeof *s->c);
        s->seen = calloc((size_t)vocab / 64 + 1, sizeof *s->seen);
    }
    if (!s || !s->c || !s->seen) {
        sl_sampler_free(s);
        return sl_err_set(err, SL_NOMEM, "making a sampler: out of memory");
    }
    *ret_sampler = s;
    return 0;
}

void sl_sampler_free(struct sl_sampler *s)
{
    if (!s)
        return;
    free(s->c);
    free(s->seen);
    free(s);
}

static void penalise(struct sl_sampler *s, float *logits, const int32_t *context, int n)
{
    float by = (float)s->settings.repetition_penalty;

    memset(s->seen, 0, ((size_t)s->vocab / 64 + 1) * sizeof *s->seen);
    for (int i = 0; i < n; i++) {
        int32_t id = context[i];

        if (id < 0 || id >= s->vocab || s->seen[id / 64] >> id % 64 & 1)
            continue;
        s->seen[id / 64] |= 1ull << id % 64;
        logits[id] = logits[id] > 0 ? logits[id] / by : logits[id] * by;
    }
}

/* The lowest id among the largest logits; -1: none is above minus infinity. */
static int32_t largest(const float *logits, int vocab)
{
    int32_t best = -1;

    for (int32_t i = 0; i < vocab; i++)
        if (logits[i] > (best < 0 ? -INFINITY : logits[best]))
            best = i;
    return best;
}

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return by_logit(a, b) < 0;
}

static void sift_down(struct candidate *heap, int n, int i)
{
    for (int child = 2 * i + 1; child < n; child = 2 * i + 1) {
        struct candidate t = heap[i];

        if (child + 1 < n && before(&heap[child], &heap[child + 1]))
            child++;
        if (!before(&heap[i], &heap[child]))
            break;
        heap[i] = heap[child];
        heap[child] = t;
        i = child;
    }
}

/* Moves the k first candidates (by logit, then id) to the front, through a heap of k with the last
 * of them on top. */
static void keep_first(struct candidate *c, int n, int k)
{
    for (int i = k / 2 - 1; i >= 0; i--)
        sift_down(c, k, i);
    for (int i = k; i < n; i++) {
        if (!before(&c[i], &c[0]))
            continue;
        c[0] = c[i];
        sift_down(c, k, 0);
    }
}

/* Smallest set of the likeliest candidates that holds at least top_p of the probability: sorts,
 * returns its size. */
static int nucleus(struct candidate *c, int n, double total, double top_p)
{
    double least = (1 - top_p) * total / n, sum = 0;
    int kept = 0, i;

    /* All candidates below `least` together hold less than 1 - top_p: none of them is in the set.
     */
    for (i = 0; i < n; i++)
        if (c[i].p >= least)
            c[kept++] = c[i];
    qsort(c, (size_t)kept, sizeof *c, by_logit);
    for (i = 0; i < kept && sum < top_p * total; i++)
        sum += c[i].p;
    return i;
}

static double sum_p(const struct candidate *c, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++)
        sum += c[i].p;
    return sum;
}

static int32_t draw(struct sl_sampler *s, const float *logits, int32_t top, int64_t row,
                    int64_t step)
{
    const struct sl_sampling *set = &s->settings;
    struct sl_rng rng = sl_rng_new(set->seed + sl_rng_mix((uint64_t)row), SL_RNG_SAMPLING);
    struct candidate *c = s->c;
    double total, target, sum = 0;
    int n = 0, i;

    for (int32_t id = 0; id < s->vocab; id++)
        if (logits[id] > -INFINITY) /* not for NaN either */
            c[n++] = (struct candidate){logits[id], id, 0};
    if (set->top_k > 0 && set->top_k < n) {
        keep_first(c, n, set->top_k);
        n = set->top_k;
        qsort(c, (size_t)n, sizeof *c, by_logit); /* the draw walks them in a defined order */
    }
    for (i = 0; i < n; i++) {
        double d = logits[top] == INFINITY ? (c[i].logit == INFINITY ? 0 : -INFINITY)
                                           : (double)c[i].logit - (double)logits[top];

        c[i].p = exp(d / set->temperature);
    }
    total = sum_p(c, n);
    if (set->top_p < 1) {
        n = nucleus(c, n, total, set->top_p);
        total = sum_p(c, n);
    }
    rng.count = (uint64_t)step;
    target = sl_rng_uniform(&rng) * total;
    for (i = 0; i < n - 1; i++) {
        sum += c[i].p;
        if (target < sum)
            break;
    }
    while (i > 0 && c[i].p <= 0) /* rounding carried past the last possible one */
        i--;
    return c[i].id;
}

int sl_sample(struct sl_sampler *s, float *logits, const int32_t *context, int n_context,
              int64_t row, int64_t step, int32_t *ret_token, struct sl_err *err)
{
    const struct sl_sampling *set = &s->settings;
    int32_t top;

    if (set->repetition_penalty != 1)
        penalise(s, logits, context, n_context);
    if (step < set->min_tokens && set->eos_id >= 0 && set->eos_id < s->vocab)
        logits[set->eos_id] = -INFINITY;
    top = largest(logits, s->vocab);
    if (top < 0)
        return sl_err_set(
            err, SL_DATA,
            "row %lld, token %lld: no logit is above minus infinity: the model or the "
            "prompt table holds numbers that are not finite",
            (long long)row, (long long)step);
    *ret_token = set->greedy ? top : draw(s, logits, top, row, step);
    return 0;
}

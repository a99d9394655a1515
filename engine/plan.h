/* How much memory a training run takes, told before anything is loaded.
 *
 * Two blocks are taken before the first step: what stays for the whole run (weights, prompt
 * encoders with their gradients and moments, tables), and the arena of a step, for the largest
 * micro-batch of the run. Their sizes are counted, not estimated: the same code makes the model and
 * the encoders on a backend that only counts, and lays the arena out without memory. What a backend
 * needs inside (workspaces, a CUDA context) is an estimate from above. */
#ifndef SL_ENGINE_PLAN_H
#define SL_ENGINE_PLAN_H
#include "base/buf.h"
#include "engine/model.h"
#include <jansson.h>

/* The machine that a plan is for; it need not be here. */
struct sl_plan_device {
    bool accelerator; /* NVIDIA GPU, else a CPU */
    enum sl_precision precision;
    int64_t memory_bytes; /* for this run; 0: unknown, then nothing is too large */
    bool open; /* memory_bytes is what an opened backend leaves: nothing outside is to be added */
};

struct sl_plan {
    struct sl_plan_device device;
    int layers;
    int n_trials;

    int micro_batch;      /* rows of a trial that pass the model together */
    struct sl_batch most; /* counts that no micro-batch of the run exceeds; no arrays */
    int recompute;        /* see sl_recompute_at */

    /* bytes */
    int64_t weights;
    int64_t encoder_parameters, encoder_gradients,
        encoder_moments; /* of all trials, tables of prompt tuning too */
    int64_t others;      /* prompts and their gradients, encoders' activations, gaps */
    int64_t persistent;  /* the sum: one block */
    struct sl_step_bytes step;
    int64_t arena;     /* step.total, or what a validation pass takes: one block */
    int64_t workspace; /* the backend's own */
    int64_t outside;   /* CUDA's context; the process itself on a CPU */
    int64_t total;
    int64_t checkpoint; /* on disk: parameters, moments, best tables */
};

/* A backend that only counts: alloc and weights give addresses that must not be used, everything
 * else does nothing. Its info's given_bytes is what a real one takes of reserve, freed pieces left
 * out as block.h says. */
int sl_count_open(const struct sl_plan_device *device, const struct sl_ops **ret_ops,
                  struct sl_backend **ret_be, struct sl_err *err);

/* Sets recompute, step, arena, workspace, outside and total for p's device, layers, counts and
 * persistent bytes: as little computed again as lets the run fit, all of it if nothing does.
 * forward: counts of a validation pass. model may be one of the counting backend. */
void sl_plan_choose(struct sl_plan *p, const struct sl_model *model,
                    const struct sl_batch *forward);
/* The same with so much computed again: see sl_recompute_at. */
void sl_plan_set(struct sl_plan *p, const struct sl_model *model, const struct sl_batch *forward,
                 int recompute);
bool sl_plan_fits(const struct sl_plan *p);
/* What a key/value cache may take of the memory that the run leaves: at most `most`, at least 1. */
int64_t sl_plan_cache_bytes(const struct sl_plan *p, int64_t most);

/* What is computed again (recompute not 0), as part of a sentence. */
#define SL_PLAN_AGAIN_MAX 128
const char *sl_plan_again(const struct sl_plan *p, char ret_text[SL_PLAN_AGAIN_MAX]);
/* A table for people, lines ended; and the same numbers as JSON (new reference). */
void sl_plan_table(const struct sl_plan *p, struct sl_buf *text);
json_t *sl_plan_json(const struct sl_plan *p);
/* "12.3 GiB", "4.0 MiB" */
#define SL_BYTES_TEXT_MAX 32
const char *sl_bytes_text(int64_t bytes, char ret_text[SL_BYTES_TEXT_MAX]);
/* "80GiB", "512MiB", "1000000": SL_SPEC for what is none. */
int sl_bytes_parse(const char *text, int64_t *ret_bytes, struct sl_err *err);

#endif

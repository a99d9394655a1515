/* A data set: JSONL files (or files holding one JSON list) of rows, rendered to ids by the tasks'
 * templates.
 *
 * Files are mapped and must not shrink while a data set is open. Several files are concatenated in
 * order. All rows are read, checked and rendered by sl_dataset_open, so every refusal (with file,
 * line and reason) and all counts are known before a run starts. Immutable after opening: many
 * threads may read one data set. */
#ifndef SL_ENGINE_DATASET_H
#define SL_ENGINE_DATASET_H
#include "engine/batch.h"
#include "engine/data/template.h"

#define SL_DATASET_LINE_MAX (4u << 20) /* bytes of one row */
#define SL_DATASET_MAX_ROWS (1 << 24)
#define SL_DATASET_MAX_TOKENS (1ll << 31) /* positions of all rows together */
#define SL_DATASET_MAX_FILES 1024

struct sl_dataset;

struct sl_dataset_options {
    /* SL_ANSWER_ROW: for training and validation; SL_ANSWER_NONE: prompts to generate from. */
    enum sl_answer answer;
    bool no_virtual; /* rows for the untuned model; always so with SL_STYLE_NO_PROMPTS */
    /* min(config's max_seq_length, the model's positions); for prompts less the tokens to generate.
     */
    int max_positions;
    /* Tasks whose rows are left out, uncounted, where the config has none of that name; NULL: none. */
    const struct sl_strings *others;
};

struct sl_dataset_counts {
    int64_t read;           /* rows in the files */
    int64_t rows;           /* kept: sl_dataset_rows */
    int64_t truncated;      /* of these, with truncate_field cut */
    int64_t too_long;       /* skipped */
    int64_t too_short;      /* skipped: under min_seq_length */
    int64_t split_boundary; /* kept, but a token spans the start of the answer (see template.h) */
    int64_t positions, targets; /* of the kept rows */
};

/* Borrows config and tok for the data set's life. With SL_ANSWER_ROW: SL_SPEC for an empty result,
 * a row without taskname, an unknown task, a row without its answer or with nothing that counts in
 * the loss, and a template's field that no row of its task has. With SL_ANSWER_NONE missing fields
 * are empty. SL_DATA for what is no JSON, SL_NOTFOUND, SL_IO, SL_NOMEM. Blocks. */
int sl_dataset_open(const char *const *paths, int n_paths, const struct sl_config *config,
                    const struct sl_tokenizer *tok, const struct sl_dataset_options *options,
                    struct sl_dataset **ret_dataset, struct sl_err *err);
void sl_dataset_free(struct sl_dataset *ds);

int sl_dataset_rows(const struct sl_dataset *ds);
struct sl_dataset_counts sl_dataset_counts(const struct sl_dataset *ds);
/* True when more than half of the rows read were skipped: say so before training. */
bool sl_dataset_mostly_skipped(const struct sl_dataset *ds);
/* Row i for packing (batch.h): ids and targets as in struct sl_rendered, slot = the task's index in
 * config->task (map it when your slots differ). Pointers live as long as the data set. */
struct sl_row sl_dataset_row(const struct sl_dataset *ds, int i);
/* How many of row i's positions count in the loss. */
int sl_dataset_row_targets(const struct sl_dataset *ds, int i);
/* Row i as it was in its file, extra fields included: for prediction tables. New reference. */
int sl_dataset_json(const struct sl_dataset *ds, int i, json_t **ret_row, struct sl_err *err);
/* The field that holds row i's answer (sl_template_answer), "answer" if its template names none. */
const char *sl_dataset_answer_field(const struct sl_dataset *ds, int i);
/* Renders row i with another answer (scoring a label) or none. The result as sl_template_render. */
int sl_dataset_render(const struct sl_dataset *ds, int i, enum sl_answer answer, const char *given,
                      struct sl_rendered *out, struct sl_err *err);
/* "train.jsonl:17" (a list's rows count from 1: "train.json: row 17"), for messages. */
void sl_dataset_where(const struct sl_dataset *ds, int i, struct sl_buf *text);

/* Fills order[0..n) with a permutation of 0..n-1, n = sl_dataset_rows: order[p] is the row at place
 * p of the epoch. Without shuffle it is the identity. With it: Fisher-Yates from the end (for i =
 * n-1 down to 1: swap i with sl_rng_below(i + 1)) over sl_rng_new(seed, SL_RNG_ORDER + epoch); it
 * depends on (n, seed, epoch) alone. */
void sl_dataset_order(const struct sl_dataset *ds, uint64_t seed, int epoch, bool shuffle,
                      int *order);

#endif

/* Text from a model and prompt tables: continuations of a data set's prompts, and the likeliest of
 * given labels.
 *
 * A row's result depends on the row, its place in the data set, the config and the tables; not on
 * what else is decoded beside it, beyond the rounding of its logits. Rows of several tasks mix
 * freely. Everything here blocks. */
#ifndef SL_ENGINE_GENERATE_H
#define SL_ENGINE_GENERATE_H
#include "base/wire.h"
#include "engine/data/dataset.h"
#include "engine/emit.h"
#include "engine/model.h"

#define SL_GENERATE_ROWS 64 /* rows decoded together, at most */
#define SL_GENERATE_CACHE_BYTES                                                                    \
    (1ll << 30)                 /* of their keys and values; a single row may take more */
#define SL_SCORE_POSITIONS 4096 /* packed positions of one scoring pass, about */
#define SL_TABLE_ROWS 15        /* predictions printed as a table */

struct sl_generator {
    struct sl_model *model;
    const struct sl_tokenizer *tok;
    const struct sl_config *config;
    bool tuned;           /* with virtual tokens; else the data set was opened with no_virtual */
    const float *prompts; /* device [sum of V, hidden] in task order; unused when not tuned */
    struct sl_control *control; /* asked between batches; may be NULL */
    struct sl_emitter *report;  /* progress; may be NULL */
    const char *phase;          /* its name in progress events */
    int64_t cache_bytes;        /* 0: SL_GENERATE_CACHE_BYTES */
};

/* Positions that a prompt may take so that inference.tokens_to_generate more fit behind it: for the
 * data set's options. SL_SPEC when there are none. */
int sl_prompt_positions(const struct sl_config *c, int model_positions, int *ret_positions,
                        struct sl_err *err);

/* Continues each row's prompt (the data set was opened with SL_ANSWER_NONE) as config->inference
 * says, until EOS, a stop string (left out of the text) or tokens_to_generate. Sampling draws from
 * (model.seed, the row's index, the token's) alone. ret_texts: one heap string a row, in the data
 * set's order, spaces at both ends stripped; free with sl_texts_free. SL_CANCELLED when control
 * asks to stop. */
int sl_generate(const struct sl_generator *g, const struct sl_dataset *ds, char ***ret_texts,
                struct sl_err *err);
/* The choice with the highest likelihood (sum over its tokens, EOS left out) after each row's
 * prompt. Rows whose task has no choices get NULL. ret_labels [rows]: the labels belong to config.
 */
int sl_choose(const struct sl_generator *g, const struct sl_dataset *ds, const char ***ret_labels,
              struct sl_err *err);
/* True when a task has inference.choices. */
bool sl_any_choices(const struct sl_config *c);
void sl_texts_free(char **texts, int n); /* NULL-safe */

/* The answer that each row of the data set holds, as the template would print it, of a list the first;
 * "" where there is none. */
int sl_row_answers(const struct sl_dataset *ds, char ***ret_answers, struct sl_err *err);

/* ---- tables of predictions (predictions.c) ---- */

/* Columns, each [rows of ds]; NULL: not there. A choice may be NULL in a row. */
struct sl_predictions {
    const struct sl_dataset *ds;
    char *const *text, *const *untuned;
    const char *const *choice;
};
/* Rows to a file: one JSON object a line (id, taskname, context, question, answer as far as the row
 * has them; prediction, choice and untuned). Durable. */
int sl_write_predictions(const char *path, const struct sl_predictions *p, struct sl_err *err);
/* The first SL_TABLE_ROWS of them for people, on standard output. */
void sl_print_predictions(const struct sl_predictions *p);

#endif

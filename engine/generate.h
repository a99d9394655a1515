/* Text from a model and prompt tables: continuations of a data set's prompts, and the likeliest of given labels. */
#ifndef SL_ENGINE_GENERATE_H
#define SL_ENGINE_GENERATE_H
#include "base/wire.h"
#include "engine/dataset.h"
#include "engine/model.h"
#include "engine/emit.h"

#define SL_GENERATE_ROWS 64        /* rows decoded together */
#define SL_SCORE_POSITIONS 4096    /* packed positions of one scoring pass, about */
#define SL_TABLE_ROWS 15           /* predictions printed as a table */

struct sl_generator {
    struct sl_model *model;
    const struct sl_tokenizer *tok;
    const struct sl_config *config;
    bool tuned;               /* with virtual tokens; else the data set was opened with no_virtual */
    const float *prompts;     /* device [sum of V, hidden] in task order; unused when not tuned */
    struct sl_control *control; /* asked between batches; may be NULL */
    struct sl_emitter *report;   /* progress; may be NULL */
    const char *phase;          /* its name in progress events */
};

/* Continues each row's prompt (the data set was opened with SL_ANSWER_NONE) as config->inference says, until EOS.
 * ret_texts: one heap string a row, spaces at both ends stripped; free with sl_texts_free. What else is in
 * the batch does not matter. SL_CANCELLED when control asks to stop. */
int sl_generate(const struct sl_generator *g, const struct sl_dataset *ds, char ***ret_texts,
                struct sl_err *err);
/* The choice with the highest likelihood (sum over its tokens, EOS left out) after each row's prompt. Rows whose task
 * has no choices get NULL. ret_labels [rows]: the labels belong to config. */
int sl_choose(const struct sl_generator *g, const struct sl_dataset *ds, const char ***ret_labels,
              struct sl_err *err);
void sl_texts_free(char **texts, int n); /* NULL-safe */

/* Rows to a file: one JSON object a line (context, question, answer, taskname as far as the row has them, prediction,
 * and untuned when given). Durable. */
int sl_write_predictions(const char *path, const struct sl_dataset *ds, char *const *texts,
                         char *const *untuned, struct sl_err *err);
/* The first SL_TABLE_ROWS of them for people, through the report. */
void sl_print_predictions(const struct sl_dataset *ds, char *const *texts, char *const *untuned);

#endif

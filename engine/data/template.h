/* Prompt templates: one row of fields becomes token ids, virtual positions and a loss mask.
 *
 * A template is text with `{field}` and `<|VIRTUAL_PROMPT_k|>`. A field's name is letters, digits,
 * `_`, `.`, `-`; other braces are text. Values are strings (numbers, true and false are printed as
 * JSON writes them), inserted once and never expanded again; spaces at both ends of the rendered
 * text are stripped. Control tokens of the tokenizer written in the template ("<|im_start|>")
 * become their ids; written in a value they stay text. Text between two markers (or control tokens)
 * is tokenised on its own, as it stands. */
#ifndef SL_ENGINE_TEMPLATE_H
#define SL_ENGINE_TEMPLATE_H
#include "engine/config.h"
#include "engine/text/tokenizer.h"

#define SL_TEMPLATE_MAX_PARTS 256
#define SL_TEMPLATE_MAX_FIELDS 64
#define SL_RENDER_TEXT_MAX SL_TOKENIZER_TEXT_MAX /* bytes of one rendered row */

struct sl_template;

/* Borrows task and tok for the template's life. SL_SPEC for what sl_spec_validate_config refuses in
 * a template. */
int sl_template_new(const struct sl_task *task, const struct sl_tokenizer *tok,
                    struct sl_template **ret_template, struct sl_err *err);
void sl_template_free(struct sl_template *t);
int sl_template_n_fields(const struct sl_template *t); /* distinct fields, in order of first use */
const char *sl_template_field(const struct sl_template *t, int i);
/* The field that holds the answer: answer_field, else the field that ends the template if it is not
 * truncate_field; NULL if there is none. */
const char *sl_template_answer(const struct sl_template *t);

/* What of the answer (sl_template_answer) a rendering holds. */
enum sl_answer {
    SL_ANSWER_ROW,  /* the row's own: training, validation */
    SL_ANSWER_NONE, /* empty: the prompt for generation; no EOS */
    SL_ANSWER_GIVEN /* sl_render.given: scoring a label */
};

struct sl_render {
    enum sl_answer answer;
    const char *given;
    bool add_bos, add_eos;     /* EOS never with SL_ANSWER_NONE */
    bool no_virtual;           /* leave virtual positions out: the untuned model */
    bool strip_around_markers; /* strip_space_around_virtual_tokens */
    int max_positions;         /* > 0 */
};

/* Reusable output; init with {0}.
 *
 * ids.id[i] >= 0 is a token; -(k+1) is virtual position k of the task's slot, k in
 * [0, total_virtual_tokens).
 *
 * target[i] is 1 when token i, predicted from position i-1, counts in the loss. Virtual positions
 * and position 0 never count. SL_ANSWER_ROW: with answer_only_loss the answer's tokens and EOS
 * count, else all tokens. SL_ANSWER_GIVEN: the answer's tokens and EOS. SL_ANSWER_NONE: nothing. */
struct sl_rendered {
    struct sl_ids ids;
    uint8_t *target;
    int cap_targets;
    int n_targets;
    int answer_start; /* first position of the answer (ids.n less EOS if there is none) */
    bool truncated;   /* the end of truncate_field was cut */
    /* The same row without its answer is no prefix of this one: a token spans the answer's start,
     * and generation will not see what training saw. */
    bool split_boundary;
};
void sl_rendered_release(struct sl_rendered *r);

/* Renders a row (a JSON object; missing fields are empty). Returns 0; 1 when it is longer than
 * max_positions even with truncate_field cut to nothing (the output is then unspecified); SL_SPEC
 * for a value that is no string, number or boolean, or text over the limit; SL_NOMEM. Answer tokens
 * start where the ids differ from those of the same row without its answer, so that the prompt at
 * inference is a prefix of the row in training whenever the tokenizer allows it. */
int sl_template_render(const struct sl_template *t, const json_t *row, const struct sl_render *how,
                       struct sl_rendered *out, struct sl_err *err);

#endif

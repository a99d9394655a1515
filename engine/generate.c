#include "engine/generate.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/decode.h"
#include "engine/sample.h"
#include "engine/utf8.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREDICTIONS_FILE_MAX (1u << 30)

void sl_texts_free(char **texts, int n)
{
    for (int i = 0; texts && i < n; i++)
        free(texts[i]);
    free(texts);
}

static int stopped(const struct sl_generator *g, int64_t done, int64_t total, struct sl_err *err)
{
    enum sl_wire_want want = g->control ? sl_control_take(g->control) : SL_WANT_NOTHING;

    if (want == SL_WANT_CANCEL || want == SL_WANT_PREEMPT)
        return sl_err_set(err, SL_CANCELLED, "asked to stop");
    if (g->report)
        sl_emit(g->report,
                        json_pack("{s:s, s:s, s:I, s:I}", "ev", "progress", "phase", g->phase, "done",
                                  (json_int_t)done, "total", (json_int_t)total));
    return 0;
}

/* ---- continuations ---- */

struct row_state {
    struct sl_ids context; /* prompt and generated tokens */
    int n_prompt;
    bool done;
};

static int take_tokens(const struct sl_generator *g, struct sl_sampler *sampler, int row0,
                       struct row_state *rows, const int *active, int n_active, float *logits,
                       int32_t *tokens, struct sl_err *err)
{
    int vocab = sl_model_arch(g->model)->vocab, eos = sl_tokenizer_eos(g->tok), rc = 0;

    for (int k = 0; k < n_active && !rc; k++) {
        struct row_state *r = &rows[active[k]];

        rc = sl_sample(sampler, logits + (size_t)k * (size_t)vocab, r->context.id, r->context.n,
                       row0 + active[k], r->context.n - r->n_prompt, &tokens[k], err);
        if (rc)
            break;
        if (tokens[k] == eos)
            r->done = true;
        else
            rc = sl_ids_add(&r->context, tokens[k]);
        if (r->context.n - r->n_prompt >= g->config->inference.tokens_to_generate)
            r->done = true;
    }
    return rc;
}

static int text_of(const struct sl_generator *g, const struct row_state *r, char **ret_text,
                   struct sl_err *err)
{
    struct sl_buf buf, valid;
    char *start, *end, *text = NULL;
    int rc;

    sl_buf_init(&buf, SL_TOKENIZER_TEXT_MAX);
    sl_buf_init(&valid, 3 * (size_t)SL_TOKENIZER_TEXT_MAX + 1);
    rc = sl_detokenize(g->tok, r->context.id + r->n_prompt, r->context.n - r->n_prompt, false, &buf,
                       err);
    start = buf.p;
    end = buf.p + buf.len;
    while (start < end && isspace((unsigned char)*start))
        start++;
    while (end > start && isspace((unsigned char)end[-1]))
        end--;
    if (!rc) /* the model may stop inside a character; JSON knows only whole ones */
        rc = sl_utf8_repair(start, (size_t)(end - start), &valid);
    if (!rc && !(text = strndup(valid.p, valid.len)))
        rc = SL_NOMEM;
    sl_buf_release(&buf);
    sl_buf_release(&valid);
    if (rc)
        return sl_err_set(err, rc, "no memory for a generated text");
    *ret_text = text;
    return 0;
}

/* Rows row0 .. row0+n of the data set, decoded together. */
static int generate_some(const struct sl_generator *g, const struct sl_dataset *ds, int row0, int n,
                         const int *slot_v, struct sl_sampler *sampler, float *logits, char **texts,
                         struct sl_err *err)
{
    struct row_state rows[SL_GENERATE_ROWS] = {0};
    struct sl_row prompt[SL_GENERATE_ROWS];
    int32_t tokens[SL_GENERATE_ROWS], next[SL_GENERATE_ROWS];
    int active[SL_GENERATE_ROWS], n_active = n, rc = 0;
    struct sl_decode *decode = NULL;

    for (int i = 0; i < n && !rc; i++) {
        prompt[i] = sl_dataset_row(ds, row0 + i);
        prompt[i].target = NULL;
        active[i] = i;
        rows[i].n_prompt = prompt[i].n;
        for (int t = 0; t < prompt[i].n && !rc; t++)
            rc = sl_ids_add(&rows[i].context, prompt[i].id[t]);
    }
    if (rc)
        sl_err_set(err, rc, "no memory for %d prompts", n);
    else
        rc = sl_decode_new(g->model, prompt, n, slot_v, g->config->n_tasks, g->prompts,
                           g->config->inference.tokens_to_generate, logits, &decode, err);
    while (!rc) {
        int left = 0;

        rc = take_tokens(g, sampler, row0, rows, active, n_active, logits, tokens, err);
        for (int k = 0; k < n_active; k++)
            if (!rows[active[k]].done) {
                active[left] = active[k];
                next[left++] = tokens[k];
            }
        n_active = left;
        if (rc || !n_active)
            break;
        rc = sl_decode_step(decode, active, next, n_active, logits, err);
    }
    for (int i = 0; i < n && !rc; i++)
        rc = text_of(g, &rows[i], &texts[row0 + i], err);
    for (int i = 0; i < n; i++)
        sl_ids_release(&rows[i].context);
    sl_decode_free(decode);
    return rc;
}

static int *slots_of(const struct sl_generator *g)
{
    int *v = calloc((size_t)g->config->n_tasks + 1, sizeof *v);

    for (int i = 0; v && g->tuned && i < g->config->n_tasks; i++)
        v[i] = g->config->task[i].total_virtual_tokens;
    return v;
}

int sl_generate(const struct sl_generator *g, const struct sl_dataset *ds, char ***ret_texts,
                struct sl_err *err)
{
    int n = sl_dataset_rows(ds), rc = 0, vocab = sl_model_arch(g->model)->vocab;
    const struct sl_config *c = g->config;
    struct sl_sampling how = {.greedy = c->inference.greedy,
                              .temperature = c->inference.temperature,
                              .top_k = c->inference.top_k,
                              .top_p = c->inference.top_p,
                              .repetition_penalty = c->inference.repetition_penalty,
                              .min_tokens = c->inference.min_tokens,
                              .eos_id = sl_tokenizer_eos(g->tok),
                              .seed = c->seed};
    struct sl_sampler *sampler = NULL;
    char **texts = calloc((size_t)n + 1, sizeof *texts);
    float *logits = malloc((size_t)SL_GENERATE_ROWS * (size_t)vocab * sizeof *logits);
    int *slot_v = slots_of(g);

    if (!texts || !logits || !slot_v)
        rc = sl_err_set(err, SL_NOMEM, "no memory to generate %d texts", n);
    else
        rc = sl_sampler_new(&how, vocab, &sampler, err);
    for (int i = 0; i < n && !rc; i += SL_GENERATE_ROWS) {
        rc = stopped(g, i, n, err);
        if (!rc)
            rc = generate_some(g, ds, i, n - i < SL_GENERATE_ROWS ? n - i : SL_GENERATE_ROWS, slot_v,
                               sampler, logits, texts, err);
    }
    sl_sampler_free(sampler);
    free(logits);
    free(slot_v);
    if (rc) {
        sl_texts_free(texts, n);
        return sl_err_wrap(err, rc, "generating");
    }
    *ret_texts = texts;
    return 0;
}

/* ---- labels by likelihood: each data set row is a slot of its own, so that its labels share their prompt ---- */

struct scoring {
    struct sl_row *row;
    struct sl_rendered *rendered;
    int *data_row, *choice; /* [n] */
    int *slot_v;
    int n, cap, n_slots;
    int64_t positions;
};

static void scoring_release(struct scoring *s)
{
    for (int i = 0; i < s->cap; i++)
        sl_rendered_release(&s->rendered[i]);
    free(s->row);
    free(s->rendered);
    free(s->data_row);
    free(s->choice);
    free(s->slot_v);
}

static int scoring_init(struct scoring *s, int cap, struct sl_err *err)
{
    *s = (struct scoring){.cap = cap};
    s->row = calloc((size_t)cap, sizeof *s->row);
    s->rendered = calloc((size_t)cap, sizeof *s->rendered);
    s->data_row = calloc((size_t)cap, sizeof *s->data_row);
    s->choice = calloc((size_t)cap, sizeof *s->choice);
    s->slot_v = calloc((size_t)cap, sizeof *s->slot_v);
    if (!s->row || !s->rendered || !s->data_row || !s->choice || !s->slot_v) {
        s->cap = s->rendered ? cap : 0;
        scoring_release(s);
        return sl_err_set(err, SL_NOMEM, "no memory to score %d labels", cap);
    }
    return 0;
}

/* The prompts of each slot's task, one after another, on the device. NULL when there are none. */
static int slot_prompts(const struct sl_generator *g, const struct scoring *s,
                        const struct sl_dataset *ds, float **ret_prompts, struct sl_err *err)
{
    const struct sl_ops *ops = sl_model_ops(g->model);
    struct sl_backend *be = sl_model_backend(g->model);
    size_t hidden = (size_t)sl_model_arch(g->model)->hidden, total = 0, at = 0;
    void *p;
    int rc, slot = -1;

    for (int i = 0; i < s->n_slots; i++)
        total += (size_t)s->slot_v[i];
    if (!total) {
        *ret_prompts = NULL;
        return 0;
    }
    rc = ops->alloc(be, total * hidden * sizeof(float), &p, err);
    if (rc)
        return rc;
    for (int i = 0; i < s->n; i++) {
        size_t offset = 0, v = (size_t)s->slot_v[s->row[i].slot];
        int task = sl_dataset_row(ds, s->data_row[i]).slot;

        if (s->row[i].slot == slot)
            continue;
        slot = s->row[i].slot;
        for (int t = 0; t < task; t++)
            offset += (size_t)g->config->task[t].total_virtual_tokens;
        ops->copy(be, (float *)p + at * hidden, g->prompts + offset * hidden,
                  v * hidden * sizeof(float));
        at += v;
    }
    *ret_prompts = p;
    return 0;
}

static int score(const struct sl_generator *g, struct scoring *s, const struct sl_dataset *ds,
                 double *best, const char **labels, struct sl_err *err)
{
    const struct sl_arch *arch = sl_model_arch(g->model);
    struct sl_batch batch;
    float *loss = NULL, *prompts = NULL;
    int rc;

    if (!s->n)
        return 0;
    rc = sl_batch_pack(s->row, s->n, s->slot_v, s->n_slots, arch->vocab, arch->max_positions, true, 0,
                       &batch, err);
    if (rc)
        return rc;
    loss = malloc((size_t)(batch.n_entries + 1) * sizeof *loss);
    if (!loss)
        rc = sl_err_set(err, SL_NOMEM, "no memory for %d losses", batch.n_entries);
    if (!rc)
        rc = slot_prompts(g, s, ds, &prompts, err);
    if (!rc)
        rc = sl_model_step(g->model, &batch, prompts, NULL, loss, err);
    for (int i = 0; i < s->n && !rc; i++) {
        const struct sl_task *task = &g->config->task[sl_dataset_row(ds, s->data_row[i]).slot];
        double sum = 0;

        for (int k = batch.row_entry_ptr[i]; k < batch.row_entry_ptr[i + 1]; k++)
            sum -= loss[batch.row_entry[k]];
        if (!labels[s->data_row[i]] || sum > best[s->data_row[i]]) {
            best[s->data_row[i]] = sum;
            labels[s->data_row[i]] = task->choice[s->choice[i]];
        }
    }
    if (prompts)
        sl_model_ops(g->model)->free(sl_model_backend(g->model), prompts);
    free(loss);
    sl_batch_release(&batch);
    s->n = s->n_slots = 0;
    s->positions = 0;
    return rc;
}

static int add_labels(const struct sl_generator *g, struct scoring *s, const struct sl_dataset *ds,
                      int i, struct sl_err *err)
{
    int task_index = sl_dataset_row(ds, i).slot, eos = sl_tokenizer_eos(g->tok), before = s->n;
    const struct sl_task *task = &g->config->task[task_index];

    for (int c = 0; c < task->n_choices; c++) {
        struct sl_rendered *r = &s->rendered[s->n];
        int rc = sl_dataset_render(ds, i, SL_ANSWER_GIVEN, task->choice[c], r, err);

        if (rc > 0)
            continue; /* does not fit: cannot be chosen */
        if (rc)
            return rc;
        if (r->ids.n && r->ids.id[r->ids.n - 1] == eos)
            r->target[r->ids.n - 1] = 0;
        s->row[s->n] = (struct sl_row){s->n_slots, r->ids.n, r->ids.id, r->target};
        s->data_row[s->n] = i;
        s->choice[s->n] = c;
        s->positions += s->n == 0 || s->data_row[s->n - 1] != i ? r->ids.n : 4;
        s->n++;
    }
    if (s->n > before)
        s->slot_v[s->n_slots++] = g->tuned ? task->total_virtual_tokens : 0;
    return 0;
}

int sl_choose(const struct sl_generator *g, const struct sl_dataset *ds, const char ***ret_labels,
              struct sl_err *err)
{
    int n = sl_dataset_rows(ds), most = 1, rc;
    const char **labels = calloc((size_t)n + 1, sizeof *labels);
    double *best = calloc((size_t)n + 1, sizeof *best);
    struct scoring s;

    for (int t = 0; t < g->config->n_tasks; t++)
        if (g->config->task[t].n_choices > most)
            most = g->config->task[t].n_choices;
    rc = scoring_init(&s, SL_BATCH_MAX_SLOTS + most, err);
    if (!labels || !best)
        rc = sl_err_set(err, SL_NOMEM, "no memory to score %d rows", n);
    for (int i = 0; i < n && !rc; i++) {
        if (s.positions > SL_SCORE_POSITIONS || s.n + most > SL_BATCH_MAX_SLOTS) {
            rc = score(g, &s, ds, best, labels, err);
            if (!rc)
                rc = stopped(g, i, n, err);
        }
        if (!rc)
            rc = add_labels(g, &s, ds, i, err);
    }
    if (!rc)
        rc = score(g, &s, ds, best, labels, err);
    if (s.row)
        scoring_release(&s);
    free(best);
    if (rc) {
        free(labels);
        return sl_err_wrap(err, rc, "scoring labels");
    }
    *ret_labels = labels;
    return 0;
}

/* ---- tables of predictions ---- */

static json_t *prediction(const struct sl_dataset *ds, int i, const char *text, const char *untuned,
                          struct sl_err *err)
{
    static const char *const kept[] = {"id", "taskname", "context", "question", "answer"};
    json_t *row = NULL, *out = json_object();

    if (!out || sl_dataset_json(ds, i, &row, err)) {
        json_decref(out);
        return NULL;
    }
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
        if (json_object_get(row, kept[k]))
            json_object_set(out, kept[k], json_object_get(row, kept[k]));
    json_decref(row);
    json_object_set_new(out, "prediction", json_string(text));
    if (untuned)
        json_object_set_new(out, "untuned", json_string(untuned));
    return out;
}

int sl_write_predictions(const char *path, const struct sl_dataset *ds, char *const *texts,
                         char *const *untuned, struct sl_err *err)
{
    struct sl_buf buf;
    int rc = 0;

    sl_buf_init(&buf, PREDICTIONS_FILE_MAX);
    for (int i = 0; i < sl_dataset_rows(ds) && !rc; i++) {
        json_t *p = prediction(ds, i, texts[i], untuned ? untuned[i] : NULL, err);
        char *line = p ? json_dumps(p, JSON_COMPACT) : NULL;

        rc = line ? sl_buf_addf(&buf, "%s\n", line) : SL_NOMEM;
        free(line);
        json_decref(p);
    }
    if (rc)
        sl_err_set(err, rc, "no memory for the prediction table");
    else
        rc = sl_file_write(path, buf.p, buf.len, err);
    sl_buf_release(&buf);
    return rc;
}

static void print_cell(const char *text, int width)
{
    int shown = 0;

    for (; *text && shown < width; text++) {
        unsigned char c = (unsigned char)*text;

        putchar(c < ' ' ? ' ' : c);
        shown += (c & 0xc0) != 0x80; /* one column a character: close enough for a preview */
    }
    while (*text && ((unsigned char)*text & 0xc0) == 0x80)
        putchar(*text++);
    printf("%*s  ", width - shown, "");
}

void sl_print_predictions(const struct sl_dataset *ds, char *const *texts, char *const *untuned)
{
    static const struct {
        const char *key;
        int width;
    } columns[] = {{"context", 44}, {"question", 30}, {"answer", 14}, {"prediction", 14}, {"untuned", 14}};
    int n = sl_dataset_rows(ds), n_columns = untuned ? 5 : 4;

    for (int c = 0; c < n_columns; c++)
        printf("%-*s  ", columns[c].width, columns[c].key);
    putchar('\n');
    for (int i = 0; i < n && i < SL_TABLE_ROWS; i++) {
        json_t *p = prediction(ds, i, texts[i], untuned ? untuned[i] : NULL, NULL);

        for (int c = 0; c < n_columns; c++)
            print_cell(sl_json_str(p, columns[c].key, ""), columns[c].width);
        putchar('\n');
        json_decref(p);
    }
    if (n > SL_TABLE_ROWS)
        printf("... and %d more rows\n", n - SL_TABLE_ROWS);
}

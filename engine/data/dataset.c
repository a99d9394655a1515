#include "engine/data/dataset.h"
#include "base/file.h"
#include "base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHERE_MAX 512
#define KEYS_TEXT_MAX 200

struct source {
    char *path;
    struct sl_map map;
    bool list; /* one JSON list, else JSONL */
};

struct row {
    int64_t start;  /* of its positions in ids and target */
    int64_t offset; /* of its JSON in the file's map */
    int32_t bytes;  /* of its JSON */
    int32_t number; /* line, or place in the list, from 1 */
    int32_t n, n_targets;
    int16_t file, task;
};

struct sl_dataset {
    const struct sl_config *config;
    const struct sl_tokenizer *tok;
    struct sl_render how;
    const struct sl_strings *others;
    int n_sources, n_rows;
    struct source *source;
    struct sl_template **template; /* [config->n_tasks] */
    struct row *row;
    int32_t *ids;
    uint8_t *target;
    int64_t cap_rows, cap_positions;
    struct sl_dataset_counts counts;
    struct sl_rendered scratch; /* while opening */
    bool *seen;                 /* [n_tasks][SL_TEMPLATE_MAX_FIELDS] some row has this field */
    int64_t *task_rows;         /* [n_tasks] rows read */
    char **task_keys;           /* [n_tasks] the keys of its first row, for a message */
};

/* ---- one row ------------------------------------------------------------------------------- */

static void where(const struct sl_dataset *ds, int file, int number, char ret_text[WHERE_MAX])
{
    snprintf(ret_text, WHERE_MAX, ds->source[file].list ? "%.400s: row %d" : "%.400s:%d",
             ds->source[file].path, number);
}

static int refuse_task(const struct sl_dataset *ds, const json_t *taskname, struct sl_err *err)
{
    char known[KEYS_TEXT_MAX] = "";
    size_t used = 0;

    for (int i = 0; i < ds->config->n_tasks && used < sizeof known - 1; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s\"%s\"", i ? ", " : "",
                                 ds->config->task[i].name);
    if (!taskname)
        return sl_err_set(err, SL_SPEC, "the row has no \"taskname\"; known tasks: %s", known);
    if (!json_is_string(taskname))
        return sl_err_set(err, SL_SPEC, "\"taskname\" is not a string; known tasks: %s", known);
    return sl_err_set(err, SL_SPEC, "unknown task \"%.100s\"; known tasks: %s",
                      json_string_value(taskname), known);
}

static void note_fields(struct sl_dataset *ds, int task, json_t *json)
{
    const struct sl_template *t = ds->template[task];
    char keys[KEYS_TEXT_MAX] = "";
    size_t used = 0;
    const char *key;
    json_t *v;

    for (int i = 0; i < sl_template_n_fields(t); i++) {
        v = json_object_get(json, sl_template_field(t, i));
        if (v && !json_is_null(v))
            ds->seen[task * SL_TEMPLATE_MAX_FIELDS + i] = true;
    }
    if (!ds->task_rows[task]++) {
        json_object_foreach(json, key, v)
        {
            if (used < sizeof keys - 1)
                used += (size_t)snprintf(keys + used, sizeof keys - used, "%s%s", used ? ", " : "",
                                         key);
        }
        ds->task_keys[task] = strdup(keys); /* NULL costs only the message */
    }
}

static int grow(void **p, size_t size, int64_t cap)
{
    void *bigger = realloc(*p, size * (size_t)cap);
    if (!bigger)
        return SL_NOMEM;
    *p = bigger;
    return 0;
}

static int keep_row(struct sl_dataset *ds, const struct row *row, struct sl_err *err)
{
    struct sl_dataset_counts *c = &ds->counts;
    const struct sl_rendered *r = &ds->scratch;
    int rc = 0;

    if (c->rows == SL_DATASET_MAX_ROWS || c->positions + r->ids.n > SL_DATASET_MAX_TOKENS)
        return sl_err_set(err, SL_SPEC, "a data set holds at most %d rows and %lld positions",
                          SL_DATASET_MAX_ROWS, SL_DATASET_MAX_TOKENS);
    if (c->rows == ds->cap_rows) {
        int64_t cap = ds->cap_rows ? 2 * ds->cap_rows : 1024;
        if (!(rc = grow((void **)&ds->row, sizeof *ds->row, cap)))
            ds->cap_rows = cap;
    }
    if (!rc && c->positions + r->ids.n > ds->cap_positions) {
        int64_t cap = 2 * (c->positions + r->ids.n) + 4096;
        if (!(rc = grow((void **)&ds->ids, sizeof *ds->ids, cap)) &&
            !(rc = grow((void **)&ds->target, sizeof *ds->target, cap)))
            ds->cap_positions = cap;
    }
    if (rc)
        return sl_err_set(err, rc, "out of memory after %lld rows", (long long)c->rows);
    memcpy(ds->ids + c->positions, r->ids.id, sizeof *ds->ids * (size_t)r->ids.n);
    memcpy(ds->target + c->positions, r->target, (size_t)r->ids.n);
    ds->row[c->rows] = *row;
    ds->row[c->rows].start = c->positions;
    ds->row[c->rows].n = r->ids.n;
    ds->row[c->rows].n_targets = r->n_targets;
    ds->n_rows = (int)++c->rows;
    c->positions += r->ids.n;
    c->targets += r->n_targets;
    c->truncated += r->truncated;
    c->split_boundary += r->split_boundary;
    return 0;
}

static int add_row(struct sl_dataset *ds, struct row *row, json_t *json, struct sl_err *err)
{
    const json_t *taskname = json_object_get(json, "taskname"), *answer;
    int task =
        json_is_string(taskname) ? sl_config_task(ds->config, json_string_value(taskname)) : -1;
    int rc;

    if (task < 0 && json_is_string(taskname) && sl_strings_have(ds->others, json_string_value(taskname)))
        return 0;
    ds->counts.read++;
    if (task < 0)
        return refuse_task(ds, taskname, err);
    row->task = (int16_t)task;
    note_fields(ds, task, json);
    if (ds->how.answer == SL_ANSWER_ROW && ds->config->task[task].answer_field) {
        answer = json_object_get(json, ds->config->task[task].answer_field);
        if (!answer || json_is_null(answer))
            return sl_err_set(err, SL_SPEC,
                              "the row has no \"%.100s\", the answer_field of task \"%s\"",
                              ds->config->task[task].answer_field, ds->config->task[task].name);
    }
    rc = sl_template_render(ds->template[task], json, &ds -> how, &ds -> scratch, err);
    if (rc < 0)
        return rc;
    if (rc > 0) {
        ds->counts.too_long++;
        return 0;
    }
    if (ds->scratch.ids.n < ds->config->data.min_seq_length) {
        ds->counts.too_short++;
        return 0;
    }
    if (!ds->scratch.ids.n)
        return sl_err_set(err, SL_SPEC, "the row is empty");
    if (ds->how.answer == SL_ANSWER_ROW && !ds->scratch.n_targets)
        return sl_err_set(err, SL_SPEC,
                          "nothing in the row counts in the loss: its answer is empty and "
                          "add_eos is off");
    return keep_row(ds, row, err);
}

/* ---- files
 * ---------------------------------------------------------------------------------
 */

/* Parses and adds the row at p; *ret_used: bytes of its JSON (in a list). */
static int read_row(struct sl_dataset *ds, int file, int number, const unsigned char *p, size_t len,
                    bool list, size_t *ret_used, struct sl_err *err)
{
    struct row row = {.file = (int16_t)file, .number = number};
    char at[WHERE_MAX];
    json_error_t e;
    json_t *json = NULL;
    size_t limit = len < SL_DATASET_LINE_MAX ? len : SL_DATASET_LINE_MAX;
    int rc = 0;

    where(ds, file, number, at);
    if (!list && len > SL_DATASET_LINE_MAX)
        return sl_err_set(err, SL_DATA, "%s: the line has %zu bytes, the limit is %u", at, len,
                          SL_DATASET_LINE_MAX);
    json = json_loadb((const char *)p, limit,
                      JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | (list ? JSON_DISABLE_EOF_CHECK : 0),
                      &e);
    if (!json && list && limit < len && e.position >= (int)limit - 1)
        return sl_err_set(err, SL_DATA, "%s: the row has over %u bytes, the limit", at,
                          SL_DATASET_LINE_MAX);
    if (!json)
        return sl_err_set(err, SL_DATA, "%s: not valid JSON: %s (column %d)", at, e.text, e.column);
    if (!json_is_object(json))
        rc = sl_err_set(err, SL_DATA, "a row is a JSON object, this is %s",
                        json_is_array(json) ? "a list" : "a bare value");
    row.offset = p - ds->source[file].map.data;
    row.bytes = list ? e.position : (int32_t)len;
    if (!rc)
        rc = add_row(ds, &row, json, err);
    json_decref(json);
    if (rc)
        return sl_err_wrap(err, rc, "%s", at);
    if (ret_used)
        *ret_used = (size_t)row.bytes;
    return 0;
}

static bool blank(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static const unsigned char *skip_blank(const unsigned char *p, const unsigned char *end)
{
    while (p < end && blank(*p))
        p++;
    return p;
}

static int read_lines(struct sl_dataset *ds, int file, const unsigned char *p,
                      const unsigned char *end, struct sl_err *err)
{
    int rc = 0;

    for (int line = 1; !rc && p < end; line++) {
        const unsigned char *newline = memchr(p, '\n', (size_t)(end - p)), *next, *last;
        last = newline ? newline : end;
        next = newline ? newline + 1 : end;
        if (line == INT32_MAX)
            return sl_err_set(err, SL_DATA, "%s has too many lines", ds->source[file].path);
        if (skip_blank(p, last) < last)
            rc = read_row(ds, file, line, p, (size_t)(last - p), false, NULL, err);
        p = next;
    }
    return rc;
}

static int read_list(struct sl_dataset *ds, int file, const unsigned char *p,
                     const unsigned char *end, struct sl_err *err)
{
    char at[WHERE_MAX];
    size_t used = 0;
    int rc;

    p = skip_blank(p + 1, end);
    if (p < end && *p == ']')
        return skip_blank(p + 1, end) == end
                   ? 0
                   : sl_err_set(err, SL_DATA, "%s: text behind the list", ds->source[file].path);
    for (int number = 1; number < INT32_MAX; number++) {
        where(ds, file, number, at);
        if (p == end)
            return sl_err_set(err, SL_DATA,
                              "%s: the list ends without \"]\": is the file truncated?", at);
        if (*p != '{')
            return sl_err_set(err, SL_DATA, "%s: a row is a JSON object, this starts with \"%c\"",
                              at, *p >= ' ' && *p < 127 ? *p : '?');
        rc = read_row(ds, file, number, p, (size_t)(end - p), true, &used, err);
        if (rc)
            return rc;
        p = skip_blank(p + used, end);
        if (p < end && *p == ']') {
            if (skip_blank(p + 1, end) < end)
                return sl_err_set(err, SL_DATA, "%s: text behind the list", ds->source[file].path);
            return 0;
        }
        if (p == end || *p != ',')
            return sl_err_set(err, SL_DATA, "%s: expected \",\" or \"]\" behind the row%s", at,
                              p == end ? ": is the file truncated?" : "");
        p = skip_blank(p + 1, end);
    }
    return sl_err_set(err, SL_DATA, "%s has too many rows", ds->source[file].path);
}

static int read_file(struct sl_dataset *ds, int file, struct sl_err *err)
{
    struct source *s = &ds->source[file];
    const unsigned char *p, *end;
    int rc = sl_map_open(s->path, &s->map, err);

    if (rc)
        return rc;
    if (!s->map.len)
        return 0;
    p = s->map.data;
    end = p + s->map.len;
    if (s->map.len >= 3 && !memcmp(p, "\xef\xbb\xbf", 3))
        p += 3; /* a byte order mark */
    const unsigned char *first = skip_blank(p, end);
    s->list = first < end && *first == '[';
    return s->list ? read_list(ds, file, first, end, err) : read_lines(ds, file, p, end, err);
}

/* ---- the whole ---- */

static int check_fields(const struct sl_dataset *ds, struct sl_err *err)
{
    for (int task = 0; task < ds->config->n_tasks; task++) {
        const struct sl_template *t = ds->template[task];
        if (!ds->task_rows[task])
            continue;
        for (int i = 0; i < sl_template_n_fields(t); i++)
            if (!ds->seen[task * SL_TEMPLATE_MAX_FIELDS + i])
                return sl_err_set(err, SL_SPEC,
                                  "%s%s: the template of task \"%s\" has {%s}, which none of its %lld "
                                  "rows has; its first row has: %s",
                                  ds->source[0].path, ds->n_sources > 1 ? " and others" : "",
                                  ds->config->task[task].name, sl_template_field(t, i),
                                  (long long)ds->task_rows[task],
                                  ds->task_keys[task] ? ds->task_keys[task] : "?");
    }
    return 0;
}

static int open_all(struct sl_dataset *ds, const char *const *paths, int n_paths,
                    struct sl_err *err)
{
    int n_tasks = ds->config->n_tasks, rc;

    ds->source = calloc((size_t)n_paths, sizeof *ds->source);
    ds->template = calloc((size_t)n_tasks, sizeof *ds->template);
    ds->seen = calloc((size_t)n_tasks, SL_TEMPLATE_MAX_FIELDS * sizeof *ds->seen);
    ds->task_rows = calloc((size_t)n_tasks, sizeof *ds->task_rows);
    ds->task_keys = calloc((size_t)n_tasks, sizeof *ds->task_keys);
    if (!ds->source || !ds->template || !ds->seen || !ds->task_rows || !ds->task_keys)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    for (int i = 0; i < n_tasks; i++)
        if ((rc = sl_template_new(&ds->config->task[i], ds->tok, &ds->template[i], err)))
            return rc;
    for (; ds->n_sources < n_paths; ds->n_sources++)
        if (!(ds->source[ds->n_sources].path = strdup(paths[ds->n_sources])))
            return sl_err_set(err, SL_NOMEM, "out of memory");
    for (int i = 0; i < n_paths; i++)
        if ((rc = read_file(ds, i, err)))
            return rc;
    if (ds->how.answer == SL_ANSWER_ROW && (rc = check_fields(ds, err)))
        return rc;
    if (!ds->n_rows)
        return sl_err_set(err, SL_SPEC,
                          "%s%s: no row is left of %lld: %lld are longer than %d "
                          "positions, %lld shorter "
                          "than min_seq_length",
                          paths[0], n_paths > 1 ? " and others" : "", (long long)ds->counts.read,
                          (long long)ds->counts.too_long, ds->how.max_positions,
                          (long long)ds->counts.too_short);
    return 0;
}

int sl_dataset_open(const char *const *paths, int n_paths, const struct sl_config *config,
                    const struct sl_tokenizer *tok, const struct sl_dataset_options *options,
                    struct sl_dataset **ret_dataset, struct sl_err *err)
{
    struct sl_dataset *ds;
    int rc;

    if (n_paths < 1 || n_paths > SL_DATASET_MAX_FILES || config->n_tasks > INT16_MAX)
        return sl_err_set(err, SL_SPEC, "a data set has 1 to %d files, not %d",
                          SL_DATASET_MAX_FILES, n_paths);
    if (!(ds = calloc(1, sizeof *ds)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    ds->config = config;
    ds->tok = tok;
    ds->how.answer = options->answer;
    ds->others = options->others;
    ds->how.add_bos = config->data.add_bos;
    ds->how.add_eos = config->data.add_eos;
    ds->how.no_virtual = options->no_virtual || config->style == SL_STYLE_NO_PROMPTS;
    ds->how.strip_around_markers = config->data.strip_space_around_virtual_tokens;
    ds->how.max_positions = options->max_positions;
    rc = open_all(ds, paths, n_paths, err);
    sl_rendered_release(&ds->scratch);
    if (rc) {
        sl_dataset_free(ds);
        return rc;
    }
    *ret_dataset = ds;
    return 0;
}

void sl_dataset_free(struct sl_dataset *ds)
{
    if (!ds)
        return;
    for (int i = 0; i < ds->n_sources; i++) {
        sl_map_close(&ds->source[i].map);
        free(ds->source[i].path);
    }
    for (int i = 0; i < ds->config->n_tasks; i++) {
        if (ds->template)
            sl_template_free(ds->template[i]);
        if (ds->task_keys)
            free(ds->task_keys[i]);
    }
    free(ds->source);
    free(ds->template);
    free(ds->seen);
    free(ds->task_rows);
    free(ds->task_keys);
    free(ds->row);
    free(ds->ids);
    free(ds->target);
    free(ds);
}

int sl_dataset_rows(const struct sl_dataset *ds)
{
    return ds->n_rows;
}

struct sl_dataset_counts sl_dataset_counts(const struct sl_dataset *ds)
{
    return ds->counts;
}

bool sl_dataset_mostly_skipped(const struct sl_dataset *ds)
{
    return 2 * (ds->counts.too_long + ds->counts.too_short) > ds->counts.read;
}

struct sl_row sl_dataset_row(const struct sl_dataset *ds, int i)
{
    const struct row *r = &ds->row[i];
    return (struct sl_row){r->task, r->n, ds->ids + r->start, ds->target + r->start};
}

int sl_dataset_row_targets(const struct sl_dataset *ds, int i)
{
    return ds->row[i].n_targets;
}

int sl_dataset_json(const struct sl_dataset *ds, int i, json_t **ret_row, struct sl_err *err)
{
    const struct row *r = &ds->row[i];
    json_t *json = json_loadb((const char *)ds->source[r->file].map.data + r->offset,
                              (size_t)r->bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    char at[WHERE_MAX];

    if (!json) { /* it was valid when the data set was opened */
        where(ds, r->file, r->number, at);
        return sl_err_set(err, SL_DATA, "%s: the row cannot be read again: was the file changed?",
                          at);
    }
    *ret_row = json;
    return 0;
}

const char *sl_dataset_answer_field(const struct sl_dataset *ds, int i)
{
    const char *field = sl_template_answer(ds->template[ds->row[i].task]);
    return field ? field : "answer";
}

int sl_dataset_render(const struct sl_dataset *ds, int i, enum sl_answer answer, const char *given,
                      struct sl_rendered *out, struct sl_err *err)
{
    struct sl_render how = ds->how;
    json_t *json = NULL;
    int rc = sl_dataset_json(ds, i, &json, err);

    how.answer = answer;
    how.given = given;
    if (!rc)
        rc = sl_template_render(ds->template[ds->row[i].task], json, &how, out, err);
    json_decref(json);
    return rc;
}

void sl_dataset_where(const struct sl_dataset *ds, int i, struct sl_buf *text)
{
    char at[WHERE_MAX];
    where(ds, ds->row[i].file, ds->row[i].number, at);
    sl_buf_adds(text, at);
}

void sl_dataset_order(const struct sl_dataset *ds, uint64_t seed, int epoch, bool shuffle,
                      int *order)
{
    struct sl_rng rng = sl_rng_new(seed, SL_RNG_ORDER + (uint64_t)epoch);

    for (int i = 0; i < ds->n_rows; i++)
        order[i] = i;
    for (int i = ds->n_rows - 1; shuffle && i > 0; i--) {
        int j = (int)sl_rng_below(&rng, (uint64_t)i + 1), x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
}

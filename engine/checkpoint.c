#include "engine/checkpoint_parts.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format/safetensors.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "softlaunch-checkpoint/2"
#define TMP_FILE "checkpoint.tmp"
#define BEST_TENSOR "best"
#define STATE_ALIGN 8192 /* bytes: see padded_text */

/* The states as a JSON text, filled up with spaces so that the checkpoints of a run are equally long:
 * whoever looked at a file's size just before it was replaced then still packs the new one rightly.
 * NULL: out of memory. */
static char *padded_text(const json_t *json)
{
    char *text = sl_json_dump(json), *out = NULL;
    size_t len = text ? strlen(text) : 0, align = STATE_ALIGN * (json_array_size(json) + 1) / 2,
           padded = (len + align - 1) / align * align;

    if (text)
        out = malloc(padded + 1);
    if (out) {
        memcpy(out, text, len);
        memset(out + len, ' ', padded - len);
        out[padded] = '\0';
    }
    free(text);
    return out;
}

/* ---- tensors ---- */

static const char *const parts[3] = {"value", "m", "v"};

static float *part_of(const struct sl_param *p, int part)
{
    return part == 0 ? p->value : part == 1 ? p->m : p->v;
}

/* A tensor of the file: of one part, a parameter's value or moment, or the best tables. */
struct place {
    const struct sl_checkpoint *c;
    const struct sl_param *param; /* NULL: the best tables */
    int part;
    struct sl_st_tensor tensor;
};

static void describe(struct place *p)
{
    struct sl_st_tensor *t = &p->tensor;
    const char *trial = p->c->name ? p->c->name : "";

    snprintf(t->name, sizeof t->name, "%s%s%s%s%s", trial, *trial ? "/" : "",
             p->param ? parts[p->part] : BEST_TENSOR, p->param ? "/" : "",
             p->param ? p->param->name : "");
    t->n_dims = 2;
    t->dim[0] = p->param ? p->param->rows : p->c->best_rows;
    t->dim[1] = p->param ? p->param->cols : p->c->hidden;
}

/* All tensors of the parts in the file's order, with states [n] or (NULL) their own. Caller frees. */
static struct place *list_places(const struct sl_checkpoint *c, int n, const struct sl_train_state *states,
                                 int *ret_n, struct sl_err *err)
{
    int most = 0, used = 0;
    struct place *p;

    for (int k = 0; k < n; k++)
        most += 3 * c[k].n_params + 1;
    p = calloc((size_t)most, sizeof *p);
    if (!p) {
        sl_err_set(err, SL_NOMEM, "out of memory");
        return NULL;
    }
    for (int k = 0; k < n; k++) {
        const struct sl_train_state *s = states ? &states[k] : c[k].state;
        bool over = s->ended != SL_TRIAL_TRAINS || (c[k].steps > 0 && s->step >= c[k].steps);

        for (int i = 0; i < 3 * c[k].n_params; i++)
            if (!over || i % 3 == 0)
                p[used++] = (struct place){.c = &c[k], .param = &c[k].params[i / 3], .part = i % 3};
        if (s->best_step >= 0 && c[k].best_tables)
            p[used++] = (struct place){.c = &c[k]};
    }
    for (int i = 0; i < used; i++)
        describe(&p[i]);
    *ret_n = used;
    return p;
}

static int fetch(void *ctx, int index, float *out, struct sl_err *err)
{
    const struct place *p = (const struct place *)ctx + index;
    size_t bytes = (size_t)sl_st_elements(&p->tensor) * sizeof *out;

    if (p->param)
        return p->c->ops->download(p->c->be, out, part_of(p->param, p->part), bytes, err);
    memcpy(out, p->c->best_tables, bytes);
    return 0;
}

/* ---- save ---- */

static int write_places(const char *path, struct place *p, int n, const char *text,
                        struct sl_err *err)
{
    struct sl_st_tensor *t = calloc((size_t)n + 1, sizeof *t);
    json_t *meta = json_pack("{s:s, s:s}", "format", FORMAT, "state", text);
    int rc;

    for (int i = 0; t && i < n; i++)
        t[i] = p[i].tensor;
    rc = t && meta ? sl_safetensors_write(path, t, n, meta, true, fetch, p, err)
                   : sl_err_set(err, SL_NOMEM, "out of memory");
    free(t);
    json_decref(meta);
    return rc;
}

static int write_checkpoint(const char *path, const struct sl_checkpoint *c, int n, const char *text,
                            struct sl_err *err)
{
    int n_places = 0, rc;
    struct place *places = list_places(c, n, NULL, &n_places, err);

    rc = places ? write_places(path, places, n_places, text, err) : SL_NOMEM;
    free(places);
    return rc;
}

static int states_to_json(const struct sl_checkpoint *c, int n, json_t **ret_json, struct sl_err *err)
{
    json_t *list = json_array();
    int rc = list ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    for (int k = 0; k < n && !rc; k++) {
        json_t *one = NULL;

        rc = sl_state_to_json(c[k].state, &one, err);
        if (!rc && (json_object_set_new(one, "trial", json_string(c[k].name ? c[k].name : "")) ||
                    json_array_append(list, one)))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        json_decref(one);
    }
    if (rc)
        json_decref(list);
    else
        *ret_json = list;
    return rc;
}

int sl_checkpoint_save(const char *run_dir, const struct sl_checkpoint *c, int n, struct sl_err *err)
{
    char tmp[SL_PATH_MAX], dir[SL_PATH_MAX], path[SL_PATH_MAX] = "", *text = NULL;
    int64_t step = 0;
    json_t *json = NULL;
    int rc = sl_path(tmp, err, "%s/" TMP_FILE, run_dir);

    if (!rc)
        rc = sl_path(dir, err, "%s/" SL_CHECKPOINT_DIR, run_dir);
    if (!rc)
        rc = sl_path(path, err, "%s/" SL_CHECKPOINT_FILE, run_dir);
    if (!rc)
        rc = states_to_json(c, n, &json, err);
    if (!rc) {
        text = padded_text(json);
        rc = text ? sl_mkdirs(dir, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    if (!rc)
        rc = write_checkpoint(tmp, c, n, text, err);
    if (!rc && rename(tmp, path))
        rc = sl_err_errno(err, "renaming %s to %s", tmp, path);
    if (!rc)
        rc = sl_dir_sync(dir, err);
    if (!rc)
        rc = sl_dir_sync(run_dir, err);
    json_decref(json);
    free(text);
    for (int k = 0; k < n; k++)
        step = c[k].state->step > step ? c[k].state->step : step;
    return rc ? sl_err_wrap(err, rc, "saving a checkpoint at step %lld", (long long)step) : 0;
}

/* ---- load ---- */

bool sl_checkpoint_exists(const char *run_dir)
{
    char path[SL_PATH_MAX];

    return !sl_path(path, NULL, "%s/" SL_CHECKPOINT_FILE, run_dir) && sl_file_exists(path);
}

static int check_tensors(const struct sl_safetensors *st, const struct place *p, int n,
                         struct sl_err *err)
{
    for (int i = 0; i < n; i++) {
        const struct sl_st_tensor *want = &p[i].tensor, *have;
        int at = sl_safetensors_find(st, want->name);

        if (at < 0)
            return sl_err_set(err, SL_DATA, "tensor %s is not in it: another encoder made it",
                              want->name);
        have = sl_safetensors_at(st, at);
        if (have->n_dims != 2 || have->dim[0] != want->dim[0] || have->dim[1] != want->dim[1])
            return sl_err_set(err, SL_DATA,
                              "tensor %s has %lld x %lld numbers, this run needs %lld x %lld",
                              want->name, (long long)have->dim[0], (long long)have->dim[1],
                              (long long)want->dim[0], (long long)want->dim[1]);
    }
    if (sl_safetensors_count(st) != n)
        return sl_err_set(err, SL_DATA,
                          "it holds %d tensors, this run needs %d: another encoder made it",
                          sl_safetensors_count(st), n);
    return 0;
}

static int check_digest(const char *what, const char *saved, const char *now, struct sl_err *err)
{
    if (!now || !strcmp(saved, now))
        return 0;
    return sl_err_set(
        err, SL_CONFLICT,
        "made with another %s (sha256 %.12s..., now %.12s...): move the checkpoint away "
        "to start afresh",
        what, saved, now);
}

/* The states [n] of a file whose seal is whole and whose trials are these. */
static int read_states(const struct sl_safetensors *st, const struct sl_checkpoint *c, int n,
                       const char *model_digest, struct sl_train_state *states, struct sl_err *err)
{
    const json_t *meta = sl_safetensors_metadata(st);
    const char *format = sl_json_str(meta, "format", "nothing"),
               *text = sl_json_str(meta, "state", "");
    json_t *json = NULL;
    int rc;

    if (strcmp(format, FORMAT) != 0)
        return sl_err_set(err, SL_DATA, "its format is %.64s, not " FORMAT, format);
    rc = sl_safetensors_verify(st, err);
    if (!rc && sl_json_parse(text, strlen(text), "state", &json, NULL))
        rc = sl_err_set(err, SL_DATA, "its state is no JSON");
    if (!rc && (!json_is_array(json) || !json_array_size(json)))
        rc = sl_err_set(err, SL_DATA, "state: it is no list of trials");
    if (!rc && (int)json_array_size(json) != n)
        rc = sl_err_set(err, SL_CONFLICT,
                        "made with %zu trials, the run has %d: move the checkpoint away to start afresh",
                        json_array_size(json), n);
    for (int k = 0; k < n && !rc; k++) {
        const json_t *one = json_array_get(json, (size_t)k);
        const char *name = c[k].name ? c[k].name : "";

        rc = sl_state_from_json(one, &states[k], err);
        if (!rc && strcmp(sl_json_str(one, "trial", ""), name) != 0)
            rc = sl_err_set(err, SL_CONFLICT,
                            "made with trial \"%.64s\" in place of \"%s\": move the checkpoint away "
                            "to start afresh",
                            sl_json_str(one, "trial", ""), name);
        if (!rc)
            rc = check_digest("configuration", states[k].config_digest, c[k].config_digest, err);
        if (!rc)
            rc = check_digest("model", states[k].model_digest, model_digest, err);
    }
    json_decref(json);
    return rc;
}

static int upload_all(const struct sl_safetensors *st, const struct place *p, int n,
                      struct sl_err *err)
{
    int64_t most = 1;
    float *data;
    int rc = 0;

    for (int i = 0; i < n; i++)
        if (p[i].param && sl_st_elements(&p[i].tensor) > most)
            most = sl_st_elements(&p[i].tensor);
    data = malloc((size_t)most * sizeof *data);
    if (!data)
        return sl_err_set(err, SL_NOMEM, "out of memory: %zu bytes for a tensor",
                          (size_t)most * sizeof *data);
    for (int i = 0; i < n && !rc; i++) {
        int at = sl_safetensors_find(st, p[i].tensor.name);

        sl_safetensors_read(st, at, p[i].param ? data : p[i].c->best_tables);
        if (p[i].param)
            rc = p[i].c->ops->upload(p[i].c->be, part_of(p[i].param, p[i].part), data,
                                     (size_t)sl_st_elements(&p[i].tensor) * sizeof *data, err);
    }
    free(data);
    return rc;
}

static int load(const struct sl_safetensors *st, const struct sl_checkpoint *c, int n,
                const char *model_digest, struct sl_train_state *states, struct sl_err *err)
{
    struct place *places = NULL;
    int n_places = 0, rc = read_states(st, c, n, model_digest, states, err);

    if (!rc && !(places = list_places(c, n, states, &n_places, err)))
        rc = SL_NOMEM;
    if (!rc)
        rc = check_tensors(st, places, n_places, err);
    if (!rc)
        rc = upload_all(st, places, n_places, err);
    free(places);
    return rc;
}

int sl_checkpoint_load(const char *run_dir, const struct sl_checkpoint *c, int n,
                       const char *model_digest, const struct sl_fingerprint *now,
                       char ret_warning[SL_CHECKPOINT_WARNING_MAX], struct sl_err *err)
{
    struct sl_safetensors *st = NULL;
    struct sl_train_state *states = calloc((size_t)n, sizeof *states);
    char path[SL_PATH_MAX];
    int rc = states ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc)
        rc = sl_path(path, err, "%s/" SL_CHECKPOINT_FILE, run_dir);
    if (!rc)
        rc = sl_safetensors_open(path, &st, err);
    if (!rc) {
        rc = load(st, c, n, model_digest, states, err);
        if (rc)
            sl_err_wrap(err, rc, "resuming from %s", path);
    }
    sl_safetensors_close(st);
    if (!rc)
        sl_fingerprint_compare(&states[0].print, now, ret_warning);
    for (int k = 0; k < n && !rc; k++)
        *c[k].state = states[k];
    free(states);
    return rc;
}

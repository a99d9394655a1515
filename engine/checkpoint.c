#include "engine/checkpoint.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format/safetensors.h"
#include <errno.h>
#include <gnu/libc-version.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "softlaunch-checkpoint/1"
#define TMP_FILE "checkpoint.tmp"
#define BEST_TENSOR "best"
#define STATE_ALIGN 8192 /* bytes: see padded_text */

/* ---- the state as JSON: one table for both directions ---- */

enum kind { INT, NUMBER, TEXT };
struct field {
    const char *name;
    enum kind kind;
    size_t offset, size; /* size: of a text, NUL included */
};
#define STATE(kind, name)                                                                          \
    {                                                                                              \
#name, kind, offsetof(struct sl_train_state, name),                                        \
            sizeof(((struct sl_train_state *)0)->name)                                             \
    }
#define PRINT(kind, name)                                                                          \
    {                                                                                              \
#name, kind, offsetof(struct sl_fingerprint, name),                                        \
            sizeof(((struct sl_fingerprint *)0)->name)                                             \
    }

static const struct field state_fields[] = {
    STATE(INT, step),
    STATE(INT, epoch),
    STATE(INT, position),
    STATE(INT, seed),
    STATE(NUMBER, loss_sum),
    STATE(INT, loss_tokens),
    STATE(INT, tokens),
    STATE(NUMBER, seconds),
    STATE(NUMBER, first_val_loss),
    STATE(INT, best_step),
    STATE(NUMBER, best_val_loss),
    STATE(NUMBER, stop_best),
    STATE(INT, stop_waited),
    STATE(INT, validated_step),
    STATE(TEXT, config_digest),
    STATE(TEXT, model_digest),
};
static const struct field print_fields[] = {
    PRINT(TEXT, backend),
    PRINT(TEXT, kernel),
    PRINT(TEXT, libraries),
};
#define N_STATE (sizeof state_fields / sizeof *state_fields)
#define N_PRINT (sizeof print_fields / sizeof *print_fields)

static int put_fields(json_t *json, const struct field *f, size_t n, const void *from,
                      struct sl_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const char *p = (const char *)from + f[i].offset;
        json_t *v = NULL;
        double number = 0;
        int64_t integer = 0;

        if (f[i].kind == NUMBER)
            memcpy(&number, p, sizeof number);
        if (f[i].kind == INT)
            memcpy(&integer, p, sizeof integer);
        if (!isfinite(number))
            return sl_err_set(err, SL_DATA, "%s is not finite", f[i].name);
        if (f[i].kind == TEXT)
            v = json_string(p);
        else
            v = f[i].kind == INT ? json_integer(integer) : json_real(number);
        if (json_object_set_new(json, f[i].name, v))
            return sl_err_set(err, SL_NOMEM, "out of memory, or %s is no UTF-8", f[i].name);
    }
    return 0;
}

static int get_fields(const json_t *json, const struct field *f, size_t n, void *to,
                      struct sl_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_object_get(json, f[i].name);
        char *p = (char *)to + f[i].offset;
        double number = json_number_value(v);
        int64_t integer = json_integer_value(v);

        if (f[i].kind == INT && json_is_integer(v))
            memcpy(p, &integer, sizeof integer);
        else if (f[i].kind == NUMBER && json_is_number(v))
            memcpy(p, &number, sizeof number);
        else if (f[i].kind == TEXT && json_is_string(v) && json_string_length(v) < f[i].size)
            memcpy(p, json_string_value(v), json_string_length(v) + 1);
        else
            return sl_err_set(err, SL_DATA, "state: %s is missing or of another type", f[i].name);
    }
    return 0;
}

static int state_to_json(const struct sl_train_state *s, json_t **ret_json, struct sl_err *err)
{
    json_t *json = json_object(), *print = json_object(), *best = json_array();
    int rc = 0, bad = 0;

    if (s->n_best < 0 || s->n_best > SL_CHECKPOINT_MAX_BEST)
        rc = sl_err_set(err, SL_SPEC, "%d best checkpoints; the limit is %d", s->n_best,
                        SL_CHECKPOINT_MAX_BEST);
    if (!rc)
        rc = put_fields(json, state_fields, N_STATE, s, err);
    if (!rc)
        rc = put_fields(print, print_fields, N_PRINT, &s->print, err);
    bad |= json_object_set_new(print, "threads", json_integer(s->print.threads));
    bad |= json_object_set_new(print, "pack_layout", json_integer(s->print.pack_layout));
    for (int i = 0; i < s->n_best && !rc; i++) {
        if (!isfinite(s->best[i].val_loss))
            rc = sl_err_set(err, SL_DATA, "val_loss of best checkpoint %d is not finite", i);
        else
            bad |= json_array_append_new(best, json_pack("{s:I, s:f}", "step",
                                                         (json_int_t)s->best[i].step, "val_loss",
                                                         s->best[i].val_loss));
    }
    bad |= json_object_set(json, "best", best);
    bad |= json_object_set(json, "fingerprint", print);
    json_decref(print);
    json_decref(best);
    if (!rc && bad)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc)
        json_decref(json);
    else
        *ret_json = json;
    return rc;
}

static int state_from_json(const json_t *json, struct sl_train_state *ret_state, struct sl_err *err)
{
    const json_t *print = json_object_get(json, "fingerprint"),
                 *best = json_object_get(json, "best");
    struct sl_train_state s = {0};
    int rc = get_fields(json, state_fields, N_STATE, &s, err);

    if (!rc)
        rc = get_fields(print, print_fields, N_PRINT, &s.print, err);
    if (rc)
        return rc;
    s.print.threads = (int)sl_json_int(print, "threads", 0);
    s.print.pack_layout = (int)sl_json_int(print, "pack_layout", 0);
    if (!json_is_array(best) || json_array_size(best) > SL_CHECKPOINT_MAX_BEST)
        return sl_err_set(err, SL_DATA, "state: best is missing or too long");
    for (s.n_best = 0; s.n_best < (int)json_array_size(best); s.n_best++) {
        const json_t *b = json_array_get(best, (size_t)s.n_best);

        if (!json_is_integer(json_object_get(b, "step")) ||
            !json_is_number(json_object_get(b, "val_loss")))
            return sl_err_set(err, SL_DATA, "state: best checkpoint %d lacks step or val_loss",
                              s.n_best);
        s.best[s.n_best].step = sl_json_int(b, "step", 0);
        s.best[s.n_best].val_loss = sl_json_num(b, "val_loss", 0);
    }
    *ret_state = s;
    return 0;
}

/* The JSON text, filled up with spaces so that the checkpoints of a run are equally long: whoever
 * looked at a file's size just before it was replaced then still packs the new one rightly. NULL:
 * out of memory. */
static char *padded_text(const json_t *json)
{
    char *text = sl_json_dump(json), *out = NULL;
    size_t len = text ? strlen(text) : 0,
           padded = (len + STATE_ALIGN - 1) / STATE_ALIGN * STATE_ALIGN;

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

/* ---- the fingerprint ---- */

void sl_fingerprint_take(const struct sl_ops *ops, const struct sl_backend *be,
                         struct sl_fingerprint *ret_print)
{
    struct sl_backend_info info;
    struct sl_fingerprint f = {.pack_layout = SL_PACK_LAYOUT};

    ops->info(be, &info);
    snprintf(f.backend, sizeof f.backend, "%s", ops->name);
    snprintf(f.kernel, sizeof f.kernel, "%s", info.kernel);
    snprintf(f.libraries, sizeof f.libraries, "softlaunch %s, glibc %s", SL_VERSION,
             gnu_get_libc_version());
    f.threads = info.threads;
    *ret_print = f;
}

static void compare_text(char *text, size_t size, const char *what, const char *then,
                         const char *now)
{
    size_t n = strlen(text);

    if (strcmp(then, now) != 0)
        snprintf(text + n, size - n, "%s%s was %s, is %s", n ? "; " : "", what, then, now);
}

static void compare_int(char *text, size_t size, const char *what, int then, int now)
{
    char a[16], b[16];

    snprintf(a, sizeof a, "%d", then);
    snprintf(b, sizeof b, "%d", now);
    compare_text(text, size, what, a, b);
}

static void warn(const struct sl_fingerprint *then, const struct sl_fingerprint *now,
                 char ret_warning[SL_CHECKPOINT_WARNING_MAX])
{
    char d[SL_CHECKPOINT_WARNING_MAX - 128] = "";

    compare_text(d, sizeof d, "backend", then->backend, now->backend);
    compare_text(d, sizeof d, "kernel", then->kernel, now->kernel);
    compare_int(d, sizeof d, "threads", then->threads, now->threads);
    compare_text(d, sizeof d, "libraries", then->libraries, now->libraries);
    compare_int(d, sizeof d, "pack layout", then->pack_layout, now->pack_layout);
    ret_warning[0] = '\0';
    if (d[0])
        snprintf(ret_warning, SL_CHECKPOINT_WARNING_MAX,
                 "resumed elsewhere than the checkpoint was made: bits will differ (%s)", d);
}

/* ---- tensors ---- */

static const char *const parts[3] = {"value", "m", "v"};

static float *part_of(const struct sl_param *p, int part)
{
    return part == 0 ? p->value : part == 1 ? p->m : p->v;
}

static void describe(const struct sl_checkpoint *c, int index, struct sl_st_tensor *t)
{
    if (index < 3 * c->n_params) {
        const struct sl_param *p = &c->params[index / 3];

        snprintf(t->name, sizeof t->name, "%s/%s", parts[index % 3], p->name);
        t->dim[0] = p->rows;
        t->dim[1] = p->cols;
    } else {
        snprintf(t->name, sizeof t->name, "%s", BEST_TENSOR);
        t->dim[0] = c->best_rows;
        t->dim[1] = c->hidden;
    }
    t->n_dims = 2;
}

static int n_tensors(const struct sl_checkpoint *c, const struct sl_train_state *s)
{
    return 3 * c->n_params + (s->best_step >= 0 && c->best_tables);
}

static int fetch(void *ctx, int index, float *out, struct sl_err *err)
{
    const struct sl_checkpoint *c = ctx;
    struct sl_st_tensor t;
    size_t bytes;

    describe(c, index, &t);
    bytes = (size_t)sl_st_elements(&t) * sizeof *out;
    if (index < 3 * c->n_params)
        return c->ops->download(c->be, out, part_of(&c->params[index / 3], index % 3), bytes, err);
    memcpy(out, c->best_tables, bytes);
    return 0;
}

/* ---- save ---- */

static int write_checkpoint(const char *path, const struct sl_checkpoint *c,
                            const struct sl_train_state *state, const char *text,
                            struct sl_err *err)
{
    int n = n_tensors(c, state), rc;
    struct sl_st_tensor *t = calloc((size_t)n + 1, sizeof *t);
    json_t *meta = json_pack("{s:s, s:s}", "format", FORMAT, "state", text);
    struct sl_checkpoint copy = *c;

    if (!t || !meta) {
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    } else {
        for (int i = 0; i < n; i++)
            describe(c, i, &t[i]);
        rc = sl_safetensors_write(path, t, n, meta, true, fetch, &copy, err);
    }
    free(t);
    json_decref(meta);
    return rc;
}

int sl_checkpoint_save(const char *run_dir, const struct sl_checkpoint *c,
                       const struct sl_train_state *state, struct sl_err *err)
{
    char tmp[SL_PATH_MAX], dir[SL_PATH_MAX], path[SL_PATH_MAX] = "", *text = NULL;
    json_t *json = NULL;
    int rc = sl_path(tmp, err, "%s/" TMP_FILE, run_dir);

    if (!rc)
        rc = sl_path(dir, err, "%s/" SL_CHECKPOINT_DIR, run_dir);
    if (!rc)
        rc = sl_path(path, err, "%s/" SL_CHECKPOINT_FILE, run_dir);
    if (!rc)
        rc = state_to_json(state, &json, err);
    if (!rc) {
        text = padded_text(json);
        rc = text ? sl_mkdirs(dir, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    if (!rc)
        rc = write_checkpoint(tmp, c, state, text, err);
    if (!rc && rename(tmp, path))
        rc = sl_err_errno(err, "renaming %s to %s", tmp, path);
    if (!rc)
        rc = sl_dir_sync(dir, err);
    if (!rc)
        rc = sl_dir_sync(run_dir, err);
    json_decref(json);
    free(text);
    return rc ? sl_err_wrap(err, rc, "saving a checkpoint at step %lld", (long long)state->step)
              : 0;
}

/* ---- load ---- */

bool sl_checkpoint_exists(const char *run_dir)
{
    char path[SL_PATH_MAX];

    return !sl_path(path, NULL, "%s/" SL_CHECKPOINT_FILE, run_dir) && sl_file_exists(path);
}

static int check_tensors(const struct sl_safetensors *st, const struct sl_checkpoint *c,
                         const struct sl_train_state *s, struct sl_err *err)
{
    int n = n_tensors(c, s);

    for (int i = 0; i < n; i++) {
        struct sl_st_tensor want;
        const struct sl_st_tensor *have;
        int at;

        describe(c, i, &want);
        at = sl_safetensors_find(st, want.name);
        if (at < 0)
            return sl_err_set(err, SL_DATA, "tensor %s is not in it: another encoder made it",
                              want.name);
        have = sl_safetensors_at(st, at);
        if (have->n_dims != 2 || have->dim[0] != want.dim[0] || have->dim[1] != want.dim[1])
            return sl_err_set(err, SL_DATA,
                              "tensor %s has %lld x %lld numbers, this run needs %lld x %lld",
                              want.name, (long long)have->dim[0], (long long)have->dim[1],
                              (long long)want.dim[0], (long long)want.dim[1]);
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

static int check_file(const struct sl_safetensors *st, const struct sl_checkpoint *c,
                      const char *config_digest, const char *model_digest,
                      struct sl_train_state *ret_state, struct sl_err *err)
{
    const json_t *meta = sl_safetensors_metadata(st);
    const char *format = sl_json_str(meta, "format", "nothing"),
               *text = sl_json_str(meta, "state", "");
    struct sl_train_state s = {0};
    json_t *json = NULL;
    int rc;

    if (strcmp(format, FORMAT) != 0)
        return sl_err_set(err, SL_DATA, "its format is %.64s, not " FORMAT, format);
    rc = sl_safetensors_verify(st, err);
    if (!rc && sl_json_parse(text, strlen(text), "state", &json, NULL))
        rc = sl_err_set(err, SL_DATA, "its state is no JSON");
    if (!rc)
        rc = state_from_json(json, &s, err);
    json_decref(json);
    if (!rc)
        rc = check_digest("configuration", s.config_digest, config_digest, err);
    if (!rc)
        rc = check_digest("model", s.model_digest, model_digest, err);
    if (!rc)
        rc = check_tensors(st, c, &s, err);
    if (!rc)
        *ret_state = s;
    return rc;
}

static int upload_all(const struct sl_safetensors *st, const struct sl_checkpoint *c, int n,
                      struct sl_err *err)
{
    size_t most = 1;
    float *data;
    int rc = 0;

    for (int i = 0; i < 3 * c->n_params; i++) {
        size_t size = (size_t)c->params[i / 3].rows * (size_t)c->params[i / 3].cols;

        most = size > most ? size : most;
    }
    data = malloc(most * sizeof *data);
    if (!data)
        return sl_err_set(err, SL_NOMEM, "out of memory: %zu bytes for a tensor",
                          most * sizeof *data);
    for (int i = 0; i < n && !rc; i++) {
        struct sl_st_tensor t;
        int at;

        describe(c, i, &t);
        at = sl_safetensors_find(st, t.name);
        if (i == 3 * c->n_params) {
            sl_safetensors_read(st, at, c->best_tables);
            break;
        }
        sl_safetensors_read(st, at, data);
        rc = c->ops->upload(c->be, part_of(&c->params[i / 3], i % 3), data,
                            (size_t)sl_st_elements(&t) * sizeof *data, err);
    }
    free(data);
    return rc;
}

int sl_checkpoint_load(const char *run_dir, const struct sl_checkpoint *c,
                       const char *config_digest, const char *model_digest,
                       const struct sl_fingerprint *now, struct sl_train_state *ret_state,
                       char ret_warning[SL_CHECKPOINT_WARNING_MAX], struct sl_err *err)
{
    struct sl_safetensors *st = NULL;
    struct sl_train_state state = {0};
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/" SL_CHECKPOINT_FILE, run_dir);

    if (!rc)
        rc = sl_safetensors_open(path, &st, err);
    if (rc)
        return rc;
    rc = check_file(st, c, config_digest, model_digest, &state, err);
    if (!rc)
        rc = upload_all(st, c, n_tensors(c, &state), err);
    sl_safetensors_close(st);
    if (rc)
        return sl_err_wrap(err, rc, "resuming from %s", path);
    warn(&state.print, now, ret_warning);
    *ret_state = state;
    return 0;
}

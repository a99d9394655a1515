/* The training state as JSON, and the fingerprint of where it was made. */
#include "base/json.h"
#include "engine/checkpoint_parts.h"
#include <gnu/libc-version.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

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
    STATE(INT, ended),
    STATE(TEXT, failure),
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
    PRINT(INT, pass_positions),
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

int sl_state_to_json(const struct sl_train_state *s, json_t **ret_json, struct sl_err *err)
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

int sl_state_from_json(const json_t *json, struct sl_train_state *ret_state, struct sl_err *err)
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

void sl_fingerprint_compare(const struct sl_fingerprint *then, const struct sl_fingerprint *now,
                            char ret_warning[SL_CHECKPOINT_WARNING_MAX])
{
    char d[SL_CHECKPOINT_WARNING_MAX - 128] = "";

    compare_text(d, sizeof d, "backend", then->backend, now->backend);
    compare_text(d, sizeof d, "kernel", then->kernel, now->kernel);
    compare_int(d, sizeof d, "threads", then->threads, now->threads);
    compare_text(d, sizeof d, "libraries", then->libraries, now->libraries);
    compare_int(d, sizeof d, "pack layout", then->pack_layout, now->pack_layout);
    compare_int(d, sizeof d, "longest pass", (int)then->pass_positions, (int)now->pass_positions);
    ret_warning[0] = '\0';
    if (d[0])
        snprintf(ret_warning, SL_CHECKPOINT_WARNING_MAX,
                 "resumed elsewhere than the checkpoint was made: bits will differ (%s)", d);
}

#include "base/config_yaml.h"
#include "base/json.h"
#include "base/nemo_keys.h"
#include "base/refs.h"
#include "base/schema.h"
#include "base/spec.h"
#include "base/yaml.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTE_MAX 16384

struct reading {
    const char *path;
    const struct sl_config_yaml_options *options;
    json_t *doc;  /* the file with its overrides */
    json_t *work; /* what becomes the spec */
    struct sl_config_yaml out;
    bool own_datasets, out_of_memory;
    struct sl_err *err;
};

static int no_memory(struct reading *r)
{
    return sl_err_set(r->err, SL_NOMEM, "%s: out of memory", r->path);
}

static void note(struct reading *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct reading *r, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    va_end(ap);
    if (!text || json_array_append_new(r->out.notes, json_string(text)))
        r->out_of_memory = true;
    free(text);
}

static void leave_out_others(struct reading *r)
{
    struct sl_buf list;

    sl_buf_init(&list, NOTE_MAX);
    if (sl_nemo_keys_leave_out(r->work, r->out.errors, &list))
        r->out_of_memory = true;
    if (list.len)
        note(r, "ignored, since they mean nothing here: %s", list.p);
    sl_buf_release(&list);
}

/* ---- values ---- */

static const char *const file_keys[] = {"train_ds", "validation_ds", "test_ds"};
static const char *const kinds[] = {"train", "validation", "test"};

/* "???" is an error, but where it may stay open: there it counts as null. */
static void find_missing(struct reading *r, json_t *value, const char *path)
{
    char below[SL_REFS_KEY_MAX];
    const char *key;
    json_t *v;
    size_t i;

    json_object_foreach(value, key, v) {
        bool is_missing = json_is_string(v) && !strcmp(json_string_value(v), SL_REFS_MISSING);

        if (snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", key) >=
            (int)sizeof below)
            continue;
        if (!is_missing) {
            find_missing(r, v, below);
            continue;
        }
        if (!(r->options->config_only &&
              (!strcmp(below, "model.language_model_path") || !strcmp(path, "model.data"))) &&
            sl_schema_error(r->out.errors, below, "a value", v, "it has to be given: %s=...",
                            below))
            r->out_of_memory = true;
        json_object_set_new(value, key, json_null());
    }
    json_array_foreach(value, i, v)
        if (snprintf(below, sizeof below, "%s[%zu]", path, i) < (int)sizeof below)
            find_missing(r, v, below);
}

static void drop_nulls(json_t *value)
{
    const char *key;
    void *tmp;
    json_t *v;
    size_t i;

    json_object_foreach_safe(value, tmp, key, v)
    {
        if (json_is_null(v))
            json_object_del(value, key);
        else
            drop_nulls(v);
    }
    json_array_foreach(value, i, v)
        drop_nulls(v);
}

static void set(struct reading *r, json_t *object, const char *key, json_t *value_stolen)
{
    if (json_object_set_new(object, key, value_stolen))
        r->out_of_memory = true;
}

static void fix_trainer(struct reading *r, json_t *trainer)
{
    static const char *const spellings[][2] = {{"16-mixed", "bf16"},
                                               {"bf16-mixed", "bf16"},
                                               {"16-true", "bf16"},
                                               {"bf16-true", "bf16"},
                                               {"32-true", "fp32"}};
    const char *precision = sl_json_str(trainer, "precision", "");

    if (json_is_null(json_object_get(trainer, "max_epochs")) &&
        sl_json_int(trainer, "max_steps", -1) > 0)
        set(r, trainer, "max_epochs", json_integer(-1));
    if (json_is_null(json_object_get(trainer, "gradient_clip_val")))
        set(r, trainer, "gradient_clip_val", json_real(0));
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++)
        if (!strcmp(precision, spellings[i][0])) {
            set(r, trainer, "precision", json_string(spellings[i][1]));
            return; /* precision is gone */
        }
}

static bool holds(const json_t *list, const char *name)
{
    size_t i;
    json_t *v;

    json_array_foreach((json_t *)list, i, v)
        if (json_is_string(v) && !strcmp(json_string_value(v), name))
            return true;
    return false;
}

static bool is_prompt_tuning(const char *style)
{
    return tolower((unsigned char)style[0]) == 'p' && tolower((unsigned char)style[1]) == 'r';
}

/* Templates of other runs, and settings of a style that is not used. */
static void leave_out_unused(struct reading *r, json_t *model)
{
    json_t *templates = json_object_get(model, "task_templates"), *t;
    const json_t *news = json_object_get(model, "new_tasks"),
                 *olds = json_object_get(model, "existing_tasks");
    bool prompt_tuning = is_prompt_tuning(sl_json_str(model, "virtual_prompt_style", ""));
    size_t i;

    for (i = 0;
         json_is_array(templates) && json_is_array(news) && i < json_array_size(templates);) {
        const char *name = sl_json_str(json_array_get(templates, i), "taskname", NULL);

        if (!name || holds(news, name) || holds(olds, name)) {
            i++;
            continue;
        }
        note(r,
             "the template of task \"%.80s\" is left out: the task is in neither new_tasks nor "
             "existing_tasks",
             name);
        json_array_remove(templates, i);
    }
    json_array_foreach(templates, i, t)
        prompt_tuning |= is_prompt_tuning(sl_json_str(t, "virtual_prompt_style", ""));
    if (!prompt_tuning)
        json_object_del(model, "prompt_tuning");
}

static void fix_model(struct reading *r, json_t *model)
{
    json_t *optim = json_object_get(model, "optim"), *data = json_object_get(model, "data");

    leave_out_unused(r, model);
    if (!optim)
        set(r, model, "optim", optim = json_object());
    if (json_is_object(optim) && !json_object_get(optim, "lr"))
        set(r, optim, "lr", json_real(SL_NEMO_LR));
    for (int i = 0; i < 3; i++) {
        json_t *files = json_object_get(data, file_keys[i]);

        if (json_is_string(files))
            set(r, data, file_keys[i], json_pack("[O]", files));
    }
}

/* ---- the spec ---- */

static json_t *as_name(const json_t *name)
{
    char text[256];
    size_t n = 0;

    if (!json_is_string(name) || json_string_length(name) >= sizeof text)
        return json_incref((json_t *)name);
    for (const char *p = json_string_value(name); *p; p++) {
        char c = (char)tolower((unsigned char)*p);

        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || strchr("._-", c))
            text[n++] = c;
        else if (!n || text[n - 1] != '-')
            text[n++] = '-';
    }
    text[n] = 0;
    return json_string(text + strspn(text, "._-"));
}

/* Moves object[key] to spec[as], if it is there. */
static void move(struct reading *r, json_t *object, const char *key, json_t *spec, const char *as)
{
    json_t *value = json_object_get(object, key);

    if (!value)
        return;
    if (json_object_set(spec, as, value))
        r->out_of_memory = true;
    json_object_del(object, key);
}

/* What a spec has beside name, model and config. */
static const char *const SPEC_KEYS[] = {"api",    "project",   "queue",    "priority", "retry",
                                        "outputs", "datasets", "resources", "dedupe",  "schedule",
                                        "secrets", "env",      "time_limit_s", "trials",
                                        "tracking"};
#define N_SPEC_KEYS (sizeof SPEC_KEYS / sizeof *SPEC_KEYS)

static json_t *build_spec(struct reading *r)
{
    json_t *spec = json_object(), *name = as_name(json_object_get(r->work, "name")), *model, *data,
           *datasets;

    set(r, spec, "api", json_string(SL_SPEC_API));
    for (size_t i = 0; i < N_SPEC_KEYS; i++)
        move(r, r->work, SPEC_KEYS[i], spec, SPEC_KEYS[i]);
    json_object_del(r->work, "name");
    if (name) {
        json_object_set(spec, "name", name);
        if (!json_object_get(spec, "outputs"))
            set(r, spec, "outputs", json_pack("{s:O}", "artifact", name));
        json_decref(name);
    }
    model = json_object_get(r->work, "model");
    move(r, model, "language_model_path", spec, "model");
    data = json_object_get(model, "data");
    r->own_datasets = json_object_get(spec, "datasets");
    datasets = json_object();
    for (int i = 0; i < 3 && !r->own_datasets; i++) {
        if (json_array_size(json_object_get(data, file_keys[i])))
            move(r, data, file_keys[i], datasets, kinds[i]);
        else if (json_is_array(json_object_get(data, file_keys[i])))
            json_object_del(data, file_keys[i]);
    }
    if (r->own_datasets)
        json_decref(datasets);
    else
        set(r, spec, "datasets", datasets);
    if (json_object_set(spec, "config", r->work))
        r->out_of_memory = true;
    return spec;
}

/* ---- judging ---- */

/* A path of the spec as one of the file. */
static void path_in_file(const struct reading *r, const char *path, char *ret, size_t size)
{
    if (!strncmp(path, "config.", 7))
        snprintf(ret, size, "%s", path + 7);
    else if (r->options->config_only)
        snprintf(ret, size, "%s", path);
    else if (!strcmp(path, "model"))
        snprintf(ret, size, "model.language_model_path");
    else if (!r->own_datasets && !strncmp(path, "datasets.", 9))
        snprintf(ret, size, "model.data.%.*s_ds%s", (int)strcspn(path + 9, "["), path + 9,
                 path + 9 + strcspn(path + 9, "["));
    else
        snprintf(ret, size, "%s", path);
}

/* Removes what a path as errors have it ("config.model.task_templates[0].x") leads to. */
static bool remove_at(json_t *root, const char *path)
{
    char part[SL_REFS_KEY_MAX];
    json_t *at = root, *parent = NULL;

    for (;;) {
        size_t n = strcspn(path, ".[]");

        if (!n || n >= sizeof part)
            return false;
        memcpy(part, path, n);
        part[n] = 0;
        parent = at;
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(part)) : json_object_get(at, part);
        path += n + strspn(path + n, ".[]");
        if (!at)
            return false;
        if (!*path)
            return json_is_object(parent) && !json_object_del(parent, part);
    }
}

static int validate(struct reading *r, json_t **ret_errors)
{
    return r->options->config_only ? sl_spec_validate_config(r->out.spec, ret_errors, r->err)
                                   : sl_spec_validate(r->out.spec, ret_errors, r->err);
}

/* Unknown keys go, with a note each; whether any did. */
static bool drop_unknown(struct reading *r, const json_t *errors)
{
    char path[SL_SCHEMA_PATH_MAX];
    bool any = false;
    size_t i;
    json_t *e;

    json_array_foreach((json_t *)errors, i, e) {
        const char *at = sl_json_str(e, "path", ""), *message = sl_json_str(e, "message", "");

        if (strncmp(message, "unknown key", 11) != 0 ||
            !remove_at(r->out.spec, at + (r->options->config_only ? strlen("config.") : 0)))
            continue;
        path_in_file(r, at, path, sizeof path);
        note(r, "%s is ignored: %s", path, message);
        any = true;
    }
    return any;
}

static int judge(struct reading *r)
{
    char path[SL_SCHEMA_PATH_MAX];
    json_t *errors = NULL, *e;
    size_t i;
    int rc = validate(r, &errors);

    while (!rc && r->options->allow_unknown && drop_unknown(r, errors)) {
        json_decref(errors);
        errors = NULL;
        rc = validate(r, &errors);
    }
    json_array_foreach(errors, i, e) {
        path_in_file(r, sl_json_str(e, "path", ""), path, sizeof path);
        set(r, e, "path", json_string(path));
        /* Said already, and better. */
        for (size_t k = 0; e && k < json_array_size(r->out.errors); k++)
            if (!strcmp(sl_json_str(json_array_get(r->out.errors, k), "path", ""), path))
                e = NULL;
        if (e && json_array_append(r->out.errors, e))
            r->out_of_memory = true;
    }
    json_decref(errors);
    return rc;
}

/* ---- reading ---- */

/* Left empty when its references lead nowhere: only a run by hand without --run-dir needs it. */
static void find_run_dir(struct reading *r)
{
    static const char *const keys[] = {"explicit_log_dir", "exp_dir", "name"};
    const json_t *manager = json_object_get(r->doc, "exp_manager"),
                 *root_name = json_object_get(r->doc, "name");
    json_t *place = json_object(), *copy;
    const char *dir, *name;

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(manager, keys[i]))
            json_object_set(place, keys[i], json_object_get(manager, keys[i]));
    copy = json_pack("{s:o, s:O*}", "exp_manager", place, "name", root_name);
    if (copy && !sl_refs_resolve(copy, r->doc, NULL)) {
        dir = sl_json_str(copy, "exp_manager.explicit_log_dir", NULL);
        name = sl_json_str(copy, "exp_manager.name", sl_json_str(copy, "name", "default"));
        if (dir)
            sl_path(r->out.run_dir, NULL, "%s", dir);
        else
            sl_path(r->out.run_dir, NULL, "%s/%s",
                    sl_json_str(copy, "exp_manager.exp_dir", SL_NEMO_EXP_DIR), name);
    }
    json_decref(copy);
}

static int open_file(struct reading *r)
{
    int rc = sl_yaml_read(r->path, &r->doc, r->err);

    if (rc)
        return rc;
    if (json_is_object(r->doc) && json_object_get(r->doc, "config"))
        return sl_err_set(r->err, SL_SPEC,
                          "%s is a job spec (it has the key config), not a run configuration",
                          r->path);
    if (!json_is_object(r->doc) || !json_is_object(json_object_get(r->doc, "model")))
        return sl_err_set(r->err, SL_SPEC,
                          "%s is no run configuration: it has no section \"model:\"", r->path);
    for (int i = 0; i < r->options->n_overrides && !rc; i++)
        rc = sl_config_apply_override(r->doc, r->options->overrides[i], r->err);
    return rc;
}

static int convert(struct reading *r)
{
    json_t *trainer, *model;
    int rc;

    r->work = json_deep_copy(r->doc);
    if (!r->work)
        return no_memory(r);
    leave_out_others(r);
    find_missing(r, r->work, "");
    rc = sl_refs_resolve(r->work, r->doc, r->err);
    if (rc)
        return sl_err_wrap(r->err, rc, "%s", r->path);
    trainer = json_object_get(r->work, "trainer");
    model = json_object_get(r->work, "model");
    if (json_is_object(trainer))
        fix_trainer(r, trainer);
    drop_nulls(r->work);
    if (json_is_object(model))
        fix_model(r, model);
    if (r->options->config_only) {
        json_object_del(r->work, "name");
        for (size_t i = 0; i < N_SPEC_KEYS; i++)
            json_object_del(r->work, SPEC_KEYS[i]);
        r->out.spec = json_incref(r->work);
    } else {
        r->out.spec = build_spec(r);
    }
    return r->out.spec ? judge(r) : no_memory(r);
}

int sl_config_yaml_read(const char *path, const struct sl_config_yaml_options *options,
                        struct sl_config_yaml *ret, struct sl_err *err)
{
    struct reading r = {.path = path, .options = options, .err = err};
    int rc = open_file(&r);

    r.out.errors = json_array();
    r.out.notes = json_array();
    if (!rc) {
        find_run_dir(&r);
        rc = convert(&r);
    }
    if (!rc && r.out_of_memory)
        rc = no_memory(&r);
    json_decref(r.doc);
    json_decref(r.work);
    if (rc)
        sl_config_yaml_release(&r.out);
    else
        *ret = r.out;
    return rc;
}

void sl_config_yaml_release(struct sl_config_yaml *c)
{
    if (!c)
        return;
    json_decref(c->spec);
    json_decref(c->errors);
    json_decref(c->notes);
    *c = (struct sl_config_yaml){0};
}

#include "engine/run.h"
#include "base/digest.h"
#include "base/json.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static char *in_dir(const char *dir, const char *path)
{
    char *joined = NULL;

    if (path[0] == '/')
        return strdup(path);
    return asprintf(&joined, "%s/%s", dir, path) < 0 ? NULL : joined;
}

static void strings_release(struct sl_strings *s)
{
    for (int i = 0; i < s->n; i++)
        free(s->s[i]);
    free(s->s);
    *s = (struct sl_strings){0, NULL};
}

static int read_split(const json_t *json, const char *dir, const char *split, struct sl_strings *ret,
                      struct sl_err *err)
{
    const json_t *list = json_object_get(json_object_get(json, "datasets"), split);
    size_t i, n = json_array_size(list);
    json_t *item;

    if (list && !json_is_array(list))
        return sl_err_set(err, SL_SPEC, "datasets.%s should be a list of files", split);
    if (n > SL_RUN_MAX_FILES)
        return sl_err_set(err, SL_SPEC, "datasets.%s names %zu files; the limit is %d", split, n,
                          SL_RUN_MAX_FILES);
    ret->s = calloc(n ? n : 1, sizeof *ret->s);
    if (!ret->s)
        return sl_err_set(err, SL_NOMEM, "no memory for datasets.%s", split);
    json_array_foreach(list, i, item)
    {
        if (!json_is_string(item))
            return sl_err_set(err, SL_SPEC, "datasets.%s[%zu] should be a path", split, i);
        ret->s[i] = in_dir(dir, json_string_value(item));
        if (!ret->s[i])
            return sl_err_set(err, SL_NOMEM, "no memory for datasets.%s", split);
        ret->n++;
    }
    return 0;
}

/* A trial whose json is set. */
static int fill_trial(struct sl_run *run, struct sl_run_trial *t, struct sl_err *err)
{
    char *text = sl_json_dump(t->json), *path;
    int rc = text ? sl_sha256_data(text, strlen(text), t->config_digest, err)
                  : sl_err_set(err, SL_NOMEM, "no memory for run.json");

    free(text);
    if (!rc)
        rc = t->name[0] ? sl_path(t->out, err, "%s/out/trials/%s", run->dir, t->name)
                        : sl_path(t->out, err, "%s/out", run->dir);
    if (!rc)
        rc = sl_config_parse(t->json, &t->config, err);
    if (rc || !t->config.restore_path)
        return rc;
    path = in_dir(run->dir, t->config.restore_path);
    if (!path)
        return sl_err_set(err, SL_NOMEM, "no memory for model.restore_path");
    free(t->config.restore_path);
    t->config.restore_path = path;
    return 0;
}

static int check_trials(const json_t *config, const json_t *trials, struct sl_err *err)
{
    json_t *errors = json_array();
    struct sl_buf text;
    int rc = sl_spec_check_trials(config, trials, errors, err);

    sl_buf_init(&text, SL_ERR_MSG_MAX - 256);
    if (!rc && json_array_size(errors)) {
        sl_spec_errors_text(errors, &text);
        rc = sl_err_set(err, SL_SPEC, "trials that cannot be trained:\n%s", text.p);
    }
    sl_buf_release(&text);
    json_decref(errors);
    return rc;
}

static int read_tasks(const json_t *config, struct sl_strings *ret, struct sl_err *err)
{
    const json_t *templates = sl_json_get(config, "model.task_templates"), *t;
    size_t i;

    ret->s = calloc(json_array_size(templates) + 1, sizeof *ret->s);
    if (!ret->s)
        return sl_err_set(err, SL_NOMEM, "no memory for run.json");
    json_array_foreach(templates, i, t)
    {
        ret->s[i] = strdup(sl_json_str(t, "taskname", ""));
        if (!ret->s[i])
            return sl_err_set(err, SL_NOMEM, "no memory for run.json");
        ret->n++;
    }
    return 0;
}

static int read_trials(const json_t *json, struct sl_run *run, struct sl_err *err)
{
    const json_t *config = json_object_get(json, "config"), *trials = json_object_get(json, "trials");
    int n = trials ? (int)json_array_size(trials) : 1;
    int rc = trials ? check_trials(config, trials, err) : 0;

    if (!rc && trials)
        rc = read_tasks(config, &run->tasks, err);
    if (rc)
        return rc;
    run->trial = calloc((size_t)n, sizeof *run->trial);
    if (!run->trial)
        return sl_err_set(err, SL_NOMEM, "no memory for %d trials", n);
    for (; run->n_trials < n && !rc; run->n_trials++) {
        struct sl_run_trial *t = &run->trial[run->n_trials];
        const json_t *from = json_array_get(trials, (size_t)run->n_trials);

        if (from) {
            snprintf(t->name, sizeof t->name, "%s", sl_json_str(from, "name", ""));
            rc = sl_spec_trial_config(config, from, &t->json, err);
        } else {
            t->json = json_incref((json_t *)(uintptr_t)config);
        }
        if (!rc)
            rc = fill_trial(run, t, err);
        if (rc && from)
            sl_err_wrap(err, rc, "trial %s", t->name);
    }
    return rc;
}

static int fill(const json_t *json, struct sl_run *run, struct sl_err *err)
{
    const char *model = sl_json_str(json, "model", NULL);
    int rc;

    snprintf(run->id, sizeof run->id, "%s", sl_json_str(json, "run", ""));
    if (!model)
        return sl_err_set(err, SL_SPEC, "model is missing: the path of a base model");
    run->model = in_dir(run->dir, model);
    if (!run->model)
        return sl_err_set(err, SL_NOMEM, "no memory for run.json");
    rc = read_split(json, run->dir, "train", &run->train, err);
    if (!rc)
        rc = read_split(json, run->dir, "validation", &run->validation, err);
    if (!rc)
        rc = read_split(json, run->dir, "test", &run->test, err);
    if (!rc && !json_object_get(json, "config"))
        rc = sl_err_set(err, SL_SPEC, "config is missing");
    return rc ? rc : read_trials(json, run, err);
}

int sl_run_open(const char *dir, struct sl_run *ret_run, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_run run = {0};
    json_t *json = NULL;
    int rc = sl_path(path, err, "%s/run.json", dir);

    if (!rc)
        rc = sl_path(run.dir, err, "%s", dir);
    if (!rc)
        rc = sl_json_read(path, SL_JSON_FILE_MAX, &json, err);
    if (rc)
        return rc;
    rc = fill(json, &run, err);
    json_decref(json);
    if (rc) {
        sl_run_release(&run);
        return sl_err_wrap(err, rc, "%s", path);
    }
    *ret_run = run;
    return 0;
}

void sl_run_release(struct sl_run *run)
{
    if (!run)
        return;
    free(run->model);
    strings_release(&run->train);
    strings_release(&run->validation);
    strings_release(&run->test);
    strings_release(&run->tasks);
    for (int i = 0; i < run->n_trials; i++) {
        json_decref(run->trial[i].json);
        sl_config_release(&run->trial[i].config);
    }
    free(run->trial);
    *run = (struct sl_run){0};
}

/* "file:///x" and relative paths become absolute ones, so that the run directory may lie anywhere. */
static json_t *absolute(const json_t *entry, struct sl_err *err)
{
    const char *text = json_is_object(entry) ? sl_json_str(entry, "ref", sl_json_str(entry, "url", ""))
                                             : json_string_value(entry);
    char full[PATH_MAX];

    if (text && !strncmp(text, "file://", 7))
        text += 7;
    if (!text || !realpath(text, full)) {
        sl_err_set(err, SL_NOTFOUND,
                   "%s: no such file; training by hand takes files, names of artifacts need an agent",
                   text ? text : "(not a path)");
        return NULL;
    }
    return json_string(full);
}

static int localise(json_t *spec, json_t *run_json, struct sl_err *err)
{
    json_t *datasets = json_object(), *model = absolute(json_object_get(spec, "model"), err), *list, *item;
    const char *split;
    size_t i;
    int rc = model ? 0 : SL_NOTFOUND;

    json_object_foreach(json_object_get(spec, "datasets"), split, list)
    {
        json_t *paths = json_array();

        json_array_foreach(list, i, item)
        {
            json_t *path = rc ? NULL : absolute(item, err);

            if (!path)
                rc = SL_NOTFOUND;
            else
                json_array_append_new(paths, path);
        }
        json_object_set_new(datasets, split, paths);
    }
    json_object_set_new(run_json, "model", model ? model : json_null());
    json_object_set_new(run_json, "datasets", datasets);
    if (!rc && sl_json_str(spec, "config.model.restore_path", NULL)) {
        json_t *in_config = json_object_get(json_object_get(spec, "config"), "model");
        json_t *path = absolute(json_object_get(in_config, "restore_path"), err);

        rc = path ? 0 : SL_NOTFOUND;
        json_object_set_new(in_config, "restore_path", path ? path : json_null());
    }
    json_object_set(run_json, "config", json_object_get(spec, "config"));
    if (json_object_get(spec, "trials"))
        json_object_set(run_json, "trials", json_object_get(spec, "trials"));
    return rc;
}

static int refuse(const char *path, const char *what, const json_t *errors, struct sl_err *err)
{
    struct sl_buf text;
    int rc;

    sl_buf_init(&text, SL_ERR_MSG_MAX - 256);
    sl_spec_errors_text(errors, &text);
    rc = sl_err_set(err, SL_SPEC, "%s is not a valid %s:\n%s", path, what, text.p);
    sl_buf_release(&text);
    return rc;
}

/* dir/run.json of a valid spec. */
static int write_run(const char *dir, json_t *spec, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *run_json = json_object();
    int rc = localise(spec, run_json, err);

    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc)
        rc = sl_path(path, err, "%s/run.json", dir);
    if (!rc)
        rc = sl_json_write(path, run_json, err);
    json_decref(run_json);
    return rc;
}

int sl_run_prepare(const char *dir, const char *spec_path, char *const *overrides, int n_overrides,
                   struct sl_err *err)
{
    json_t *spec = NULL, *errors = NULL;
    int rc = sl_json_read(spec_path, SL_SPEC_FILE_MAX, &spec, err);

    for (int i = 0; i < n_overrides && !rc; i++)
        rc = sl_spec_apply_override(spec, overrides[i], err);
    if (!rc)
        rc = sl_spec_validate(spec, &errors, err);
    if (!rc && json_array_size(errors))
        rc = refuse(spec_path, "spec", errors, err);
    if (!rc)
        rc = write_run(dir, spec, err);
    json_decref(spec);
    json_decref(errors);
    return rc;
}

int sl_run_prepare_yaml(const char *dir, const char *config_path, const struct sl_config_yaml *config,
                        struct sl_err *err)
{
    if (json_array_size(config->errors))
        return refuse(config_path, "run configuration", config->errors, err);
    return write_run(dir, config->spec, err);
}

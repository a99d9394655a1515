#include "base/json.h"
#include "base/schema.h"
#include "base/spec.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What differs between trials without changing the frozen model, the rows or the number of steps. */
static const char *const trial_keys[] = {
    "model.seed",
    "model.virtual_prompt_style",
    "model.task_templates.#.total_virtual_tokens",
    "model.task_templates.#.virtual_token_splits",
    "model.task_templates.#.virtual_prompt_style",
    "model.p_tuning.encoder_type",
    "model.p_tuning.dropout",
    "model.p_tuning.num_layers",
    "model.p_tuning.encoder_hidden",
    "model.p_tuning.init_std",
    "model.p_tuning.taskname_rows",
    "model.prompt_tuning.new_prompt_init_methods",
    "model.prompt_tuning.new_prompt_init_text",
    "model.optim.lr",
    "model.optim.betas",
    "model.optim.weight_decay",
    "model.optim.eps",
    "model.optim.sched.warmup_steps",
    "model.optim.sched.constant_steps",
    "model.optim.sched.min_lr",
    "trainer.gradient_clip_val",
};
#define N_KEYS ((int)(sizeof trial_keys / sizeof *trial_keys))

const char *const *sl_spec_trial_keys(int *ret_n)
{
    *ret_n = N_KEYS;
    return trial_keys;
}

/* key, written a.0.b or a[0].b, is of the form of a listed one. */
static bool is_form(const char *key, const char *form)
{
    for (; *form; form++) {
        bool bracket = *form == '.' && *key == '[';

        if (*form != '#' && !bracket && *form != *key)
            return false;
        if (*form != '#') {
            key++;
            continue;
        }
        if (!isdigit((unsigned char)*key))
            return false;
        while (isdigit((unsigned char)*key))
            key++;
        key += *key == ']';
    }
    return !*key;
}

static bool may_override(const char *key)
{
    for (int i = 0; i < N_KEYS; i++)
        if (is_form(key, trial_keys[i]))
            return true;
    return false;
}

/* ---- the config of a trial ---- */

static bool names(const json_t *list, const char *name)
{
    size_t i;
    json_t *e;

    json_array_foreach(list, i, e)
        if (json_is_string(e) && !strcmp(json_string_value(e), name))
            return true;
    return false;
}

/* Removes from a list of names, and from the lists that go with it, what tasks does not name. */
static void keep_named(json_t *list, const json_t *tasks, json_t *const *parallel, int n_parallel)
{
    for (size_t i = json_array_size(list); i-- > 0;) {
        const char *name = json_string_value(json_array_get(list, i));

        if (name && names(tasks, name))
            continue;
        json_array_remove(list, i);
        for (int k = 0; k < n_parallel; k++)
            json_array_remove(parallel[k], i);
    }
}

static void keep_tasks(json_t *config, const json_t *tasks)
{
    json_t *model = json_object_get(config, "model"), *choices, *e;
    json_t *templates = json_object_get(model, "task_templates");
    json_t *olds = json_object_get(model, "existing_tasks");
    json_t *news = json_object_get(model, "new_tasks"), *new_names = json_array();
    json_t *tuning = json_object_get(model, "prompt_tuning");
    json_t *const parallel[2] = {json_object_get(tuning, "new_prompt_init_methods"),
                                 json_object_get(tuning, "new_prompt_init_text")};
    const char *key;
    void *next;
    size_t i;

    json_array_foreach(templates, i, e) /* without new_tasks they are the templates, in order */
        if (!names(olds, sl_json_str(e, "taskname", "")))
            json_array_append(new_names, json_object_get(e, "taskname"));
    keep_named(news ? news : new_names, tasks, parallel, 2);
    json_decref(new_names);
    keep_named(olds, tasks, NULL, 0);
    for (i = json_array_size(templates); i-- > 0;)
        if (!names(tasks, sl_json_str(json_array_get(templates, i), "taskname", "")))
            json_array_remove(templates, i);
    choices = json_object_get(json_object_get(config, "inference"), "choices");
    json_object_foreach_safe(choices, next, key, e)
        if (!names(tasks, key))
            json_object_del(choices, key);
}

int sl_spec_trial_config(const json_t *config, const json_t *trial, json_t **ret_config,
                         struct sl_err *err)
{
    const json_t *overrides = json_object_get(trial, "overrides"),
                 *tasks = json_object_get(trial, "tasks");
    json_t *copy = json_deep_copy(config), *value;
    const char *key;
    int rc = copy ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc && tasks)
        keep_tasks(copy, tasks);
    json_object_foreach((json_t *)(uintptr_t)overrides, key, value)
    {
        char *text = rc ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT), *both = NULL;

        if (!rc && (!text || asprintf(&both, "%s=%s", key, text) < 0))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        if (!rc)
            rc = sl_config_apply_override(copy, both, err);
        free(text);
        free(both);
    }
    if (rc)
        json_decref(copy);
    else
        *ret_config = copy;
    return rc;
}

/* ---- what may be wrong with a list of them ---- */

static int wrong(json_t *errors, const char *path, const char *expected, const json_t *found,
                 const char *message, struct sl_err *err)
{
    if (json_array_size(errors) >= SL_SPEC_MAX_ERRORS)
        return 0;
    return sl_schema_error(errors, path, expected, found, "%s", message)
               ? sl_err_set(err, SL_NOMEM, "out of memory")
               : 0;
}

static int check_name(const json_t *trials, size_t index, const char *path, json_t *errors,
                      struct sl_err *err)
{
    const json_t *name = json_object_get(json_array_get(trials, index), "name");
    const char *text = json_string_value(name);
    char at[96];

    snprintf(at, sizeof at, "%s.name", path);
    if (!text || !isalnum((unsigned char)text[0]) || strlen(text) >= SL_SPEC_TRIAL_NAME_MAX ||
        text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")])
        return wrong(errors, at, "a name", name,
                     "a trial's name is a file name of letters, digits, \".\", \"_\" and \"-\"", err);
    for (size_t i = 0; i < index; i++)
        if (!strcmp(sl_json_str(json_array_get(trials, i), "name", ""), text))
            return wrong(errors, at, "a name of its own", name, "an earlier trial has this name too",
                         err);
    return 0;
}

static int check_keys(const json_t *trial, const char *path, json_t *errors, struct sl_err *err)
{
    const char *key;
    json_t *value;
    int rc = 0;

    json_object_foreach(json_object_get(trial, "overrides"), key, value)
    {
        const char *nearest = sl_schema_nearest(key, trial_keys, N_KEYS);
        char at[SL_SCHEMA_PATH_MAX], message[512];

        if (rc || may_override(key))
            continue;
        snprintf(at, sizeof at, "%s.overrides.%.200s", path, key);
        snprintf(message, sizeof message,
                 "no key that a trial may set (trials share the model, the rows and the steps)%s%s%s",
                 nearest ? "; the nearest is \"" : "", nearest ? nearest : "", nearest ? "\"" : "");
        rc = wrong(errors, at, "a key that trials may differ in", value, message, err);
    }
    return rc;
}

static int check_tasks(const json_t *config, const json_t *trial, const char *path, json_t *errors,
                       struct sl_err *err)
{
    const json_t *templates = json_object_get(json_object_get(config, "model"), "task_templates");
    const json_t *tasks = json_object_get(trial, "tasks"), *task, *t;
    size_t i, k;
    int rc = 0;

    json_array_foreach(tasks, i, task)
    {
        bool found = false;
        char at[96];

        json_array_foreach(templates, k, t)
            found |= json_is_string(task) &&
                     !strcmp(sl_json_str(t, "taskname", ""), json_string_value(task));
        snprintf(at, sizeof at, "%s.tasks[%zu]", path, i);
        if (!found && !rc)
            rc = wrong(errors, at, "the taskname of a template", task,
                       "no task template has this taskname", err);
    }
    return rc;
}

/* The trial's whole config, by the rules for any; errors under the trial's path. */
static int check_whole(const json_t *config, const json_t *trial, const char *path, json_t *errors,
                       struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    json_t *own = NULL, *found = NULL, *e;
    size_t i;
    int rc = sl_spec_trial_config(config, trial, &own, &why);

    if (rc == SL_SPEC)
        return wrong(errors, path, "keys and values that fit the config", trial, why.msg, err);
    if (rc)
        return sl_err_set(err, rc, "%s", why.msg);
    rc = sl_spec_validate_config(own, &found, err);
    json_array_foreach(found, i, e)
    {
        char at[SL_SCHEMA_PATH_MAX + 32];

        snprintf(at, sizeof at, "%s.%s", path, sl_json_str(e, "path", ""));
        if (json_object_set_new(e, "path", json_string(at)) && !rc)
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        if (json_array_size(errors) < SL_SPEC_MAX_ERRORS)
            json_array_append(errors, e);
    }
    json_decref(found);
    json_decref(own);
    return rc;
}

int sl_spec_check_trials(const json_t *config, const json_t *trials, json_t *errors,
                         struct sl_err *err)
{
    size_t i, n = json_array_size(trials);
    const json_t *trial;
    const char *style;
    int rc = 0;

    if (n < 1 || n > SL_SPEC_MAX_TRIALS)
        return wrong(errors, "trials", "1 to 32 trials", trials, "expected 1 to 32 trials", err);
    if (tolower((unsigned char)*sl_json_str(config, "model.virtual_prompt_style", "p")) == 'n')
        return wrong(errors, "trials", "none", NULL,
                     "virtual_prompt_style no-prompts trains nothing that trials could differ in", err);
    json_array_foreach(trials, i, trial)
    {
        size_t before = json_array_size(errors);
        char path[64];

        snprintf(path, sizeof path, "trials[%zu]", i);
        if (!rc)
            rc = check_name(trials, i, path, errors, err);
        if (!rc)
            rc = check_keys(trial, path, errors, err);
        if (!rc)
            rc = check_tasks(config, trial, path, errors, err);
        if (!rc && json_array_size(errors) == before)
            rc = check_whole(config, trial, path, errors, err);
        style = json_string_value(
            json_object_get(json_object_get(trial, "overrides"), "model.virtual_prompt_style"));
        if (!rc && style && tolower((unsigned char)*style) == 'n')
            rc = wrong(errors, path, "another style", NULL, "a trial of style no-prompts trains nothing",
                       err);
    }
    return rc;
}

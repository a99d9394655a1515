/* What may be set in a job: types, bounds, and how values get into its spec. */
#include "artifacts/names.h"
#include "base/json.h"
#include "base/spec.h"
#include "server/http.h"
#include "server/jobs.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void problem(json_t *errors, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void problem(json_t *errors, const char *name, const char *fmt, ...)
{
    char detail[600], path[SL_NAME_MAX + 32];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(detail, sizeof detail, fmt, ap); /* NOLINT(clang-analyzer-valist.Uninitialized) */
    va_end(ap);
    snprintf(path, sizeof path, "parameters.%.128s", name);
    sl_http_complain(errors, path, detail);
}

static bool is_kind(const json_t *p, const char *type)
{
    return !strcmp(sl_json_str(p, "type", ""), type);
}

static bool is_integer(const json_t *v)
{
    double d = json_number_value(v);
    return json_is_integer(v) || (json_is_real(v) && d >= -9e15 && d <= 9e15 && d == (double)(int64_t)d);
}

static bool is_choice(const json_t *choices, const json_t *value)
{
    size_t i;
    json_t *one;
    json_array_foreach(choices, i, one)
        if (json_equal(one, (json_t *)(uintptr_t)value))
            return true;
    return false;
}

/* A value of a parameter that is well formed itself. */
static void check_value(const json_t *p, const char *name, const json_t *value, json_t *errors)
{
    bool whole = is_kind(p, "integer");

    if (is_kind(p, "number") || whole) {
        double least = sl_json_num(p, "minimum", 0), most = sl_json_num(p, "maximum", 0);
        double v = json_number_value(value);
        if (!json_is_number(value) || (whole && !is_integer(value)))
            problem(errors, name, "expected %s", whole ? "an integer" : "a number");
        else if (!(v >= least && v <= most))
            problem(errors, name, "%.10g is not in %.10g to %.10g", v, least, most);
    } else if (is_kind(p, "choice")) {
        if (!is_choice(json_object_get(p, "choices"), value)) {
            char *choices = json_dumps(json_object_get(p, "choices"), JSON_COMPACT);
            problem(errors, name, "expected one of %.400s", choices ? choices : "");
            free(choices);
        }
    } else {
        size_t most = (size_t)sl_json_int(p, "max_length", SL_JOB_TEXT_MAX);
        if (!json_is_string(value) || json_string_length(value) > most)
            problem(errors, name, "expected a text of at most %zu bytes", most);
    }
}

/* Its form without the default. */
static bool check_form(const json_t *p, const char *name, json_t *errors)
{
    static const char *const known[] = {"path",    "type",       "minimum", "maximum",
                                        "choices", "max_length", "default", "description"};
    const json_t *choices = json_object_get(p, "choices"), *one;
    size_t before = json_array_size(errors), i;
    const char *key;
    json_t *value;

    if (!sl_name_valid(name))
        problem(errors, name, "not a name: a-z 0-9 . _ -, first a letter or digit");
    json_object_foreach((json_t *)(uintptr_t)p, key, value)
    {
        bool found = false;
        for (i = 0; i < sizeof known / sizeof *known; i++)
            found |= !strcmp(key, known[i]);
        if (!found)
            problem(errors, name, "there is no key `%.60s` here", key);
    }
    if (!*sl_json_str(p, "path", "") || strlen(sl_json_str(p, "path", "")) > 300 ||
        strchr(sl_json_str(p, "path", ""), '='))
        problem(errors, name, "path: expected a key of the spec, as model.optim.lr");
    if (is_kind(p, "number") || is_kind(p, "integer")) {
        if (!json_is_number(json_object_get(p, "minimum")) || !json_is_number(json_object_get(p, "maximum")) ||
            sl_json_num(p, "minimum", 0) > sl_json_num(p, "maximum", 0))
            problem(errors, name, "expected minimum and maximum, numbers in this order");
    } else if (is_kind(p, "choice")) {
        if (!json_array_size(choices) || json_array_size(choices) > SL_JOB_CHOICES_MAX)
            problem(errors, name, "choices: expected a list of 1 to %d values", SL_JOB_CHOICES_MAX);
        json_array_foreach((json_t *)(uintptr_t)choices, i, one)
            if (!json_is_string(one) && !json_is_number(one) && !json_is_boolean(one))
                problem(errors, name, "choices[%zu]: expected a text, a number or true or false", i);
    } else if (is_kind(p, "text")) {
        int64_t most = sl_json_int(p, "max_length", SL_JOB_TEXT_MAX);
        if (most < 0 || most > SL_JOB_TEXT_MAX)
            problem(errors, name, "max_length: at most %d", SL_JOB_TEXT_MAX);
    } else {
        problem(errors, name, "type: expected number, integer, choice or text");
    }
    return json_array_size(errors) == before;
}

/* A key of the spec by its path as on a command line; "model.x" is config's. */
static const json_t *spec_value(const json_t *spec, const char *path)
{
    static const char *const sections[] = {"model.", "trainer.", "exp_manager.", "inference."};
    char full[400];

    snprintf(full, sizeof full, "%s", path);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
        if (!strncmp(path, sections[i], strlen(sections[i])))
            snprintf(full, sizeof full, "config.%s", path);
    return sl_json_get(spec, full);
}

static int apply(json_t *spec, const json_t *p, const char *name, const json_t *value, json_t *errors)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS), *override;
    struct sl_err wrong = SL_ERR_INIT;
    size_t room = 400 + (text ? strlen(text) : 0);
    int rc = 0;

    override = malloc(room);
    if (!text || !override) {
        rc = SL_NOMEM;
    } else {
        snprintf(override, room, "%s=%s", sl_json_str(p, "path", ""), text);
        if (sl_spec_apply_override(spec, override, &wrong))
            problem(errors, name, "%s", wrong.msg);
    }
    free(override);
    free(text);
    return rc;
}

/* A key that the run's spec does not set: whether a spec may have it at all, by a value within the bounds. */
static int try_key(const json_t *spec, const json_t *p, const char *name, json_t *errors, struct sl_err *err)
{
    json_t *copy = json_deep_copy(spec), *wrong = NULL, *value;
    size_t before = json_array_size(errors);
    int rc = copy ? 0 : SL_NOMEM;

    if (is_kind(p, "choice"))
        value = json_incref(json_array_get(json_object_get(p, "choices"), 0));
    else if (is_kind(p, "text"))
        value = json_string("x");
    else
        value = json_incref(json_object_get(p, "minimum"));
    if (!rc)
        rc = apply(copy, p, name, value, errors);
    if (!rc && json_array_size(errors) == before) {
        rc = sl_spec_validate(copy, &wrong, err);
        const json_t *first = json_array_get(wrong, 0);
        if (first)
            problem(errors, name, "%s: %s", sl_json_str(first, "path", ""), sl_json_str(first, "message", ""));
    }
    json_decref(wrong);
    json_decref(value);
    json_decref(copy);
    return rc ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
}

int sl_job_parameters(const json_t *parameters, const json_t *spec, json_t **ret_parameters,
                      json_t *errors, struct sl_err *err)
{
    json_t *all = json_deep_copy(parameters), *p;
    size_t before = json_array_size(errors);
    const char *name;
    int rc = 0;

    if (!json_is_object(all) || json_object_size(all) > SL_JOB_PARAMETERS_MAX) {
        json_decref(all);
        sl_http_complain(errors, "parameters", "expected an object of at most 64 parameters");
        return 0;
    }
    json_object_foreach(all, name, p)
    {
        const json_t *now;
        if (!json_is_object(p)) {
            problem(errors, name, "expected an object with path, type and bounds");
            continue;
        }
        if (!check_form(p, name, errors))
            continue;
        now = spec_value(spec, sl_json_str(p, "path", ""));
        if (!json_object_get(p, "default") && now)
            json_object_set(p, "default", (json_t *)(uintptr_t)now);
        if (json_object_get(p, "default"))
            check_value(p, name, json_object_get(p, "default"), errors);
        if (!now && !rc)
            rc = try_key(spec, p, name, errors, err);
    }
    if (rc || json_array_size(errors) > before) {
        json_decref(all);
        return rc;
    }
    *ret_parameters = all;
    return 0;
}

json_t *sl_job_usual_parameters(const json_t *spec)
{
    double lr = sl_json_num(spec, "config.model.optim.lr", 0);
    int64_t steps = sl_json_int(spec, "config.trainer.max_steps", -1);
    json_t *all = json_object();

    if (lr > 0)
        json_object_set_new(all, "lr", json_pack("{s:s, s:s, s:f, s:f}", "path", "model.optim.lr", "type",
                                                 "number", "minimum", lr / 100, "maximum", lr * 100));
    if (steps > 0)
        json_object_set_new(all, "max_steps",
                            json_pack("{s:s, s:s, s:i, s:I}", "path", "trainer.max_steps", "type", "integer",
                                      "minimum", 1, "maximum", (json_int_t)steps * 100));
    json_object_set_new(all, "seed", json_pack("{s:s, s:s, s:i, s:i}", "path", "model.seed", "type", "integer",
                                               "minimum", 0, "maximum", 2147483647));
    return all;
}

int sl_job_spec(const json_t *job, const json_t *values, json_t **ret_spec, json_t *errors,
                struct sl_err *err)
{
    const json_t *parameters = json_object_get(job, "parameters");
    json_t *spec = json_deep_copy(json_object_get(job, "spec")), *value;
    size_t before = json_array_size(errors);
    const char *name;
    int rc = spec ? 0 : SL_NOMEM;

    json_object_foreach((json_t *)(uintptr_t)values, name, value)
    {
        const json_t *p = json_object_get(parameters, name);
        if (!p) {
            char known[300] = "";
            const char *other;
            json_t *ignored;
            json_object_foreach((json_t *)(uintptr_t)parameters, other, ignored)
                snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "", other);
            problem(errors, name, "the job has no such parameter; it has: %s", *known ? known : "none");
            continue;
        }
        size_t so_far = json_array_size(errors);
        check_value(p, name, value, errors);
        if (!rc && json_array_size(errors) == so_far)
            rc = apply(spec, p, name, value, errors);
    }
    if (!rc && json_object_set_new(spec, "origin",
                                   json_pack("{s:O, s:O}", "job", json_object_get(job, "job"), "job_version",
                                             json_object_get(job, "version"))))
        rc = SL_NOMEM;
    if (rc || json_array_size(errors) > before) {
        json_decref(spec);
        return rc ? sl_err_set(err, SL_NOMEM, "out of memory") : 0;
    }
    *ret_spec = spec;
    return 0;
}

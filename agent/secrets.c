#include "agent/secrets.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/spec.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MASK "***"

extern char **environ;

/* ---- forms: what must not be seen ---------------------------------------------------------------- */

static int add_form(struct sl_secrets *s, const char *text, size_t len, struct sl_err *err)
{
    int at = s->n_forms;

    if (len < SL_SECRET_MIN_BYTES)
        return 0;
    for (int i = 0; i < s->n_forms; i++)
        if (strlen(s->form[i]) == len && !memcmp(s->form[i], text, len))
            return 0;
    if (s->n_forms == SL_SECRET_FORMS_MAX)
        return sl_err_set(err, SL_SPEC, "the run's secrets have more than %d lines in all", SL_SECRET_FORMS_MAX);
    for (; at > 0 && strlen(s->form[at - 1]) < len; at--)
        s->form[at] = s->form[at - 1];
    s->form[at] = strndup(text, len);
    s->n_forms++;
    return s->form[at] ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
}

/* As a URL has it: upper and lower case hex digits are both usual. */
static int add_escaped(struct sl_secrets *s, const char *text, size_t len, const char *format, struct sl_err *err)
{
    struct sl_buf out;
    int rc = 0;

    sl_buf_init(&out, 4 * SL_SECRET_MAX_BYTES);
    for (size_t i = 0; i < len && !rc; i++)
        rc = isalnum((unsigned char)text[i]) || strchr("-._~", text[i])
                 ? sl_buf_add(&out, text + i, 1)
                 : sl_buf_addf(&out, format, (unsigned)(unsigned char)text[i]); /* NOLINT */
    rc = rc ? sl_err_set(err, SL_NOMEM, "out of memory") : add_form(s, out.p, out.len, err);
    sl_buf_release(&out);
    return rc;
}

static int add_as_json(struct sl_secrets *s, const char *text, size_t len, struct sl_err *err)
{
    json_t *string = json_stringn(text, len);
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    int rc = quoted ? add_form(s, quoted + 1, strlen(quoted) - 2, err) : 0; /* no UTF-8: then JSON cannot hold it */

    free(quoted);
    json_decref(string);
    return rc;
}

static int add_forms(struct sl_secrets *s, const char *text, size_t len, struct sl_err *err)
{
    int rc = add_form(s, text, len, err);

    if (!rc)
        rc = add_escaped(s, text, len, "%%%02X", err);
    if (!rc)
        rc = add_escaped(s, text, len, "%%%02x", err);
    return rc ? rc : add_as_json(s, text, len, err);
}

/* ---- values -------------------------------------------------------------------------------------- */

static int add_value(struct sl_secrets *s, const char *name, const char *value, size_t len, struct sl_err *err)
{
    size_t room = strlen(name) + len + 2;
    int rc = 0;

    if (len < SL_SECRET_MIN_BYTES || memchr(value, 0, len))
        return sl_err_set(err, SL_SPEC, "%s: its value is shorter than %d bytes, or holds a zero byte", name,
                          SL_SECRET_MIN_BYTES);
    if (s->n_env == SL_SECRETS_MAX)
        return sl_err_set(err, SL_SPEC, "secrets and env: more than %d", SL_SECRETS_MAX);
    char *line = malloc(room);
    if (!line)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    snprintf(line, room, "%s=%.*s", name, (int)len, value);
    s->env[s->n_env++] = line;
    rc = add_forms(s, value, len, err);
    for (size_t at = 0; !rc && at < len;) { /* of a key of several lines each alone */
        const char *end = memchr(value + at, '\n', len - at);
        size_t n = end ? (size_t)(end - value) - at : len - at;
        rc = add_forms(s, value + at, n && value[at + n - 1] == '\r' ? n - 1 : n, err);
        at += n + 1;
    }
    return rc;
}

static int read_secret(struct sl_secrets *s, const char *name, const char *secret, const char *project,
                       const struct sl_secret_sources *from, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_buf value;
    int rc;

    if (!from->dir)
        return sl_err_set(err, SL_NOTFOUND, "secrets.%s: this agent has no secrets: start it with --secrets-dir", name);
    rc = sl_path(path, err, "%s/%s/%s", from->dir, project, secret);
    if (!rc && !sl_file_exists(path))
        rc = sl_path(path, err, "%s/%s", from->dir, secret);
    if (rc)
        return rc;
    if (!sl_file_exists(path))
        return sl_err_set(err, SL_NOTFOUND, "secrets.%s: this agent has no secret %s", name, secret);
    sl_buf_init(&value, SL_SECRET_MAX_BYTES);
    rc = sl_file_read(path, &value, NULL);
    if (rc)
        rc = sl_err_set(err, rc == SL_NOMEM ? SL_SPEC : SL_IO, "secrets.%s: the secret %s cannot be read, or is longer than %u bytes",
                        name, secret, SL_SECRET_MAX_BYTES);
    while (!rc && value.len && (value.p[value.len - 1] == '\n' || value.p[value.len - 1] == '\r'))
        value.len--;
    if (!rc)
        rc = add_value(s, name, value.p, value.len, err);
    if (value.p)
        explicit_bzero(value.p, value.len);
    sl_buf_release(&value);
    return rc ? sl_err_wrap(err, rc, "secret %s", secret) : 0;
}

static int read_variable(struct sl_secrets *s, const char *name, const struct sl_secret_sources *from,
                         struct sl_err *err)
{
    const char *value = getenv(name);
    bool allowed = false;

    for (int i = 0; i < from->n_allow_env; i++)
        allowed |= !strcmp(from->allow_env[i], name);
    if (!allowed)
        return sl_err_set(err, SL_DENIED, "env: this agent does not give %s to runs: start it with --allow-env %s", name,
                          name);
    if (!value)
        return sl_err_set(err, SL_NOTFOUND, "env: %s is not set on this agent", name);
    return add_value(s, name, value, strlen(value), err);
}

int sl_secrets_load(const json_t *spec, const struct sl_secret_sources *from, struct sl_secrets *ret_secrets,
                    struct sl_err *err)
{
    const char *name, *project = sl_json_str(spec, "project", "default");
    struct sl_secrets s = {.n_env = 0};
    json_t *value;
    size_t i;
    int rc = 0;

    json_object_foreach(json_object_get(spec, "secrets"), name, value)
    {
        const char *ref = json_string_value(value);
        if (!rc && (!sl_spec_env_name(name) || !ref || strncmp(ref, "secret:", 7) != 0 || strchr(ref, '/') || ref[7] == '.'))
            rc = sl_err_set(err, SL_SPEC, "secrets.%.100s: not a variable that a secret may be", name);
        if (!rc)
            rc = read_secret(&s, name, ref + 7, project, from, err);
    }
    json_array_foreach(json_object_get(spec, "env"), i, value)
        if (!rc)
            rc = sl_spec_env_name(json_string_value(value))
                     ? read_variable(&s, json_string_value(value), from, err)
                     : sl_err_set(err, SL_SPEC, "env[%zu]: not a variable that a run may have", i);
    if (rc)
        sl_secrets_release(&s);
    else
        *ret_secrets = s;
    return rc;
}

static void clear(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

void sl_secrets_release(struct sl_secrets *s)
{
    for (int i = 0; i < s->n_env; i++)
        clear(s->env[i]);
    for (int i = 0; i < s->n_forms; i++)
        clear(s->form[i]);
    memset(s, 0, sizeof *s);
}

/* ---- masking ------------------------------------------------------------------------------------- */

void sl_secrets_mask(const struct sl_secrets *s, char *text)
{
    for (int i = 0; i < s->n_forms; i++) {
        size_t len = strlen(s->form[i]);
        for (char *at = text; (at = strstr(at, s->form[i]));) {
            memcpy(at, MASK, sizeof MASK - 1);
            memmove(at + sizeof MASK - 1, at + len, strlen(at + len) + 1);
            at += sizeof MASK - 1;
        }
    }
}

json_t *sl_secrets_mask_json(const struct sl_secrets *s, const json_t *json)
{
    json_t *out, *value;
    const char *key;
    size_t i;

    if (!s->n_forms)
        return json_incref((json_t *)(uintptr_t)json);
    if (json_is_string(json)) {
        char *text = strdup(json_string_value(json));
        if (!text)
            return json_string(MASK);
        sl_secrets_mask(s, text);
        out = json_string(text);
        free(text);
        return out ? out : json_string(MASK); /* cut within a character */
    }
    if (json_is_array(json)) {
        out = json_array();
        json_array_foreach((json_t *)(uintptr_t)json, i, value)
            json_array_append_new(out, sl_secrets_mask_json(s, value));
        return out;
    }
    if (json_is_object(json)) {
        out = json_object();
        json_object_foreach((json_t *)(uintptr_t)json, key, value)
            json_object_set_new(out, key, sl_secrets_mask_json(s, value));
        return out;
    }
    return json_incref((json_t *)(uintptr_t)json);
}

/* ---- what a worker must not inherit ------------------------------------------------------------------ */

static bool looks_secret(const char *name, size_t len)
{
    static const char *const words[] = {"TOKEN",   "SECRET",     "PASSWORD",   "PASSWD",      "CREDENTIAL",
                                        "API_KEY", "ACCESS_KEY", "APIKEY",     "PRIVATE_KEY", "AUTH"};
    char upper[128];

    if (len >= sizeof upper)
        return false;
    for (size_t i = 0; i < len; i++)
        upper[i] = (char)toupper((unsigned char)name[i]);
    upper[len] = 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(upper, words[i]))
            return true;
    return false;
}

int sl_secrets_foreign(const struct sl_secrets *s, const struct sl_secret_sources *from, const char **ret_names,
                       char *names, size_t size, int most)
{
    size_t used = 0;
    int n = 0;

    for (char **e = environ; *e && n < most; e++) {
        size_t len = strcspn(*e, "=");
        bool ours = false, given = looks_secret(*e, len);
        for (int i = 0; i < from->n_allow_env; i++)
            given |= strlen(from->allow_env[i]) == len && !strncmp(from->allow_env[i], *e, len);
        for (int i = 0; i < s->n_env; i++)
            ours |= !strncmp(s->env[i], *e, len) && s->env[i][len] == '=';
        if (ours || !given || used + len + 1 > size)
            continue;
        memcpy(names + used, *e, len);
        names[used + len] = 0;
        ret_names[n++] = names + used;
        used += len + 1;
    }
    return n;
}

#include "server/rerun.h"
#include "artifacts/names.h"
#include "base/json.h"
#include <stdio.h>
#include <string.h>

/* ---- pinning --------------------------------------------------------------------------------- */

/* The next input of a role, from *at on. */
static const json_t *next_input(const json_t *facts, const char *role, size_t *at)
{
    const json_t *inputs = json_object_get(facts, "inputs");

    for (; *at < json_array_size(inputs); (*at)++)
        if (!strcmp(sl_json_str(json_array_get(inputs, *at), "role", ""), role))
            return json_array_get(inputs, (*at)++);
    return NULL;
}

/* "words:latest/train.jsonl" -> "words:v3/train.jsonl"; what is no artifact stays. */
static int pinned_ref(const char *ref, const json_t *input, char *ret_ref, size_t size, struct sl_err *err)
{
    if (sl_json_str(input, "name", NULL))
        return sl_ref_pin(ref, sl_json_str(input, "name", ""), sl_json_str(input, "version", ""), ret_ref, size, err);
    snprintf(ret_ref, size, "%s", ref);
    return 0;
}

static int pin(const json_t *source, const json_t *input, json_t **ret_source, struct sl_err *err)
{
    const char *ref = json_is_string(source) ? json_string_value(source) : sl_json_str(source, "ref", NULL);
    char text[4200];
    int rc = ref && input ? pinned_ref(ref, input, text, sizeof text, err)
                          : sl_err_set(err, SL_CONFLICT, "the record of its inputs does not fit its spec");

    if (rc)
        return rc;
    *ret_source = json_pack("{s:s, s:s}", "ref", text, "sha256", sl_json_str(input, "sha256", ""));
    return *ret_source ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
}

int sl_rerun_pin(const json_t *given, const json_t *facts, json_t **ret_spec, struct sl_err *err)
{
    static const char *const kinds[] = {"train", "validation", "test"};
    json_t *spec = json_deep_copy(given), *source = NULL, *model;
    const char *restore = sl_json_str(spec, "config.model.restore_path", NULL);
    char text[4200];
    size_t at = 0;
    int rc;

    if (!json_object_get(facts, "inputs") || sl_json_bool(facts, "inputs_left_out", false)) {
        json_decref(spec);
        return sl_err_set(err, SL_CONFLICT,
                          "there is no record of what it was made of (an agent of an earlier version published it, or "
                          "its inputs are too many): enqueue its spec anew instead");
    }
    rc = pin(json_object_get(spec, "model"), next_input(facts, "model", &at), &source, err);
    if (!rc)
        json_object_set_new(spec, "model", source);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        json_t *list = json_object_get(json_object_get(spec, "datasets"), kinds[k]);
        at = 0;
        for (size_t i = 0; !rc && i < json_array_size(list); i++) {
            rc = pin(json_array_get(list, i), next_input(facts, kinds[k], &at), &source, err);
            if (!rc)
                json_array_set_new(list, i, source);
        }
    }
    if (!rc && restore) {
        at = 0;
        const json_t *input = next_input(facts, "restore", &at);
        rc = input ? pinned_ref(restore, input, text, sizeof text, err)
                   : sl_err_set(err, SL_CONFLICT, "the record of its inputs does not fit its spec");
        model = json_object_get(json_object_get(spec, "config"), "model");
        if (!rc)
            json_object_set_new(model, "restore_path", json_string(text));
    }
    if (rc) {
        json_decref(spec);
        return rc;
    }
    json_object_set_new(json_object_get(spec, "outputs"), "aliases", json_array());
    json_object_del(json_object_get(spec, "outputs"), "register");
    json_object_del(spec, "schedule");
    json_object_del(spec, "dedupe");
    *ret_spec = spec;
    return 0;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool is_table(const char *path)
{
    static const char name[] = "prompt_table.safetensors";
    size_t len = strlen(path), n = sizeof name - 1;

    return len >= n && !strcmp(path + len - n, name) && (len == n || path[len - n - 1] == '/');
}

/* {path within the tarball: sha256} of the prompt tables. */
static json_t *tables_of(const json_t *record)
{
    json_t *tables = json_object(), *file, *entry;
    size_t i, k;

    json_array_foreach(json_object_get(record, "files"), i, file)
        json_array_foreach(json_object_get(file, "entries"), k, entry)
            if (is_table(sl_json_str(entry, "path", "")))
                json_object_set(tables, sl_json_str(entry, "path", ""), json_object_get(entry, "sha256"));
    return tables;
}

static void differ(json_t *list, const char *what, const json_t *was, const json_t *is)
{
    json_t *a = was ? (json_t *)(uintptr_t)was : json_null(), *b = is ? (json_t *)(uintptr_t)is : json_null();

    if (!json_equal(a, b))
        json_array_append_new(list, json_pack("{s:s, s:O, s:O}", "what", what, "was", a, "is", b));
}

/* Roles and digests alone: "latest" and the version that it was are the same input. */
static json_t *digests_of(const json_t *facts)
{
    json_t *list = json_array(), *in;
    size_t i;

    json_array_foreach(json_object_get(facts, "inputs"), i, in)
        json_array_append_new(list, json_pack("{s:O*, s:O*}", "role", json_object_get(in, "role"), "sha256",
                                              json_object_get(in, "sha256")));
    return list;
}

json_t *sl_rerun_compare(const json_t *facts, const json_t *record, const json_t *other_facts,
                         const json_t *other_record)
{
    static const char *const keys[] = {"backend", "kernel", "threads", "libraries", "pack_layout", "pass_positions"};
    json_t *was = tables_of(record), *is = tables_of(other_record), *all = json_object(), *tables = json_array();
    json_t *differences = json_array(), *value, *a = digests_of(facts), *b = digests_of(other_facts);
    const char *path;
    bool same = json_object_size(was) && json_equal(was, is);

    json_object_update(all, was);
    json_object_update(all, is);
    json_object_foreach(all, path, value)
        json_array_append_new(tables, json_pack("{s:s, s:O?, s:O?}", "path", path, "was", json_object_get(was, path),
                                                "is", json_object_get(is, path)));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        differ(differences, keys[i], json_object_get(json_object_get(facts, "fingerprint"), keys[i]),
               json_object_get(json_object_get(other_facts, "fingerprint"), keys[i]));
    differ(differences, "inputs", a, b);
    /* A run that went on from a checkpoint has had two machines. */
    if (sl_json_bool(facts, "resumed", false) || sl_json_bool(other_facts, "resumed", false))
        differ(differences, "resumed", json_object_get(facts, "resumed"), json_object_get(other_facts, "resumed"));
    json_decref(a);
    json_decref(b);
    json_decref(all);
    json_decref(was);
    json_decref(is);
    return json_pack("{s:b, s:o, s:o}", "same", same, "tables", tables, "differences", differences);
}

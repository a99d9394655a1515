/* What a run was made of until its checkpoint, so that it goes on with the same. */
#include "artifacts/names.h"
#include "artifacts/plan.h"
#include "base/digest.h"
#include "base/json.h"
#include <string.h>

json_t *sl_plan_inputs(const json_t *resolved)
{
    json_t *list = json_array(), *in;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)resolved, i, in)
    {
        const char *path = sl_json_str(in, "path", "");
        if (strncmp(path, "inputs/", 7) != 0)
            continue; /* a checkpoint */
        if (json_array_append_new(list, json_pack("{s:s, s:O*, s:O*, s:O*}", "path", path, "name", json_object_get(in, "name"),
                                                  "version", json_object_get(in, "version"), "sha256",
                                                  json_object_get(in, "sha256")))) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static const json_t *input_at(const json_t *inputs, const char *dest)
{
    size_t i;
    json_t *in;
    json_array_foreach((json_t *)(uintptr_t)inputs, i, in)
        if (strcmp(sl_json_str(in, "path", ""), dest) == 0)
            return in;
    return NULL;
}

int sl_plan_pinned(const json_t *inputs, const char *dest, const char **ref, const char **sha256,
                   char ret_text[SL_PLAN_REF_BYTES], struct sl_err *err)
{
    const json_t *in = *ref ? input_at(inputs, dest) : NULL;
    const char *name = sl_json_str(in, "name", NULL), *version = sl_json_str(in, "version", NULL);
    const char *digest = sl_json_str(in, "sha256", "");
    int rc = 0;
    if (!in)
        return 0;
    if (!sl_sha256_valid(digest) || (name && (!sl_name_valid(name) || sl_version_number(version) < 0)))
        return sl_err_set(err, SL_DATA, "what the checkpoint says of its input %s is not as it should be", dest);
    if (name)
        rc = sl_ref_pin(*ref, name, version, ret_text, SL_PLAN_REF_BYTES, err);
    if (rc)
        return rc;
    *sha256 = digest;
    if (name)
        *ref = ret_text;
    return 0;
}

/* What a run's outputs were made of, for their version records. */
#include "agent/rundir.h"
#include "artifacts/lineage.h"
#include "base/digest.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A reference as it may be told for ever: a URL without user, password and query, which may be credentials. */
static json_t *public_ref(const char *ref)
{
    const char *scheme = strstr(ref, "://"), *host, *at;
    char text[4200];

    if (!scheme)
        return json_string(ref);
    host = scheme + 3;
    at = memchr(host, '@', strcspn(host, "/?#"));
    snprintf(text, sizeof text, "%.*s%.*s", (int)(host - ref), ref,
             (int)strcspn(at ? at + 1 : host, "?#"), at ? at + 1 : host);
    return json_string(text);
}

/* "inputs/train-0.jsonl" -> "train". */
static json_t *role_of(const char *path)
{
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;

    return json_stringn(name, strcspn(name, "-."));
}

static json_t *inputs_of(const json_t *resolved)
{
    json_t *list = json_array(), *in;
    size_t i;

    json_array_foreach((json_t *)(uintptr_t)resolved, i, in) {
        const char *path = sl_json_str(in, "path", "");
        if (strncmp(path, "inputs/", 7) != 0)
            continue; /* a checkpoint */
        json_array_append_new(
            list, json_pack("{s:o, s:o, s:O*, s:O*, s:O*, s:O*}", "role", role_of(path), "ref",
                            public_ref(sl_json_str(in, "ref", "")), "name", json_object_get(in, "name"),
                            "version", json_object_get(in, "version"), "sha256",
                            json_object_get(in, "sha256"), "bytes", json_object_get(in, "bytes")));
    }
    return list;
}

json_t *sl_rundir_facts(const struct sl_claim *claim, const json_t *inputs, const json_t *started)
{
    json_t *facts = json_pack("{s:s, s:s, s:O*, s:O*, s:O*, s:O*, s:o*}", "name", claim->name, "code",
                              SL_VERSION, "project", json_object_get(claim->spec, "project"),
                              "origin", json_object_get(claim->spec, "origin"), "fingerprint",
                              json_object_get(started, "fingerprint"), "resumed",
                              json_object_get(started, "resumed"), "inputs",
                              inputs ? inputs_of(inputs) : NULL);
    char *spec = sl_json_dump(claim->spec), digest[SL_SHA256_HEX + 1], *text;

    if (spec && facts && !sl_sha256_data(spec, strlen(spec), digest, NULL))
        json_object_set_new(facts, "spec", json_string(digest));
    free(spec);
    /* Thousands of long names: the run's record still has them. */
    text = facts ? sl_json_dump(facts) : NULL;
    if (text && strlen(text) > SL_FACTS_MAX_BYTES) {
        json_object_set_new(facts, "inputs", json_array());
        json_object_set_new(facts, "inputs_left_out", json_true());
    }
    free(text);
    return facts;
}

/* Job specs. Lines before the first that begins with a brace are overrides, "key=value"; the rest is the spec. */
#include "base/json.h"
#include "base/spec.h"
#include "engine/config.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

enum { OVERRIDES_MAX = 8 };

/* A valid spec is still valid with its defaults filled in, and its config can be had as C values. */
static void use_valid(const json_t *spec)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *full = NULL, *errors = NULL;
    struct sl_config config;

    fuzz_check(sl_spec_with_defaults(spec, &full, &err) == 0);
    fuzz_check(sl_spec_validate(full, &errors, &err) == 0 && json_array_size(errors) == 0);
    fuzz_check(sl_config_parse(json_object_get(full, "config"), &config, &err) == 0);
    sl_config_release(&config);
    json_decref(errors);
    json_decref(full);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    char *text = fuzz_text(data, size), *at = text, *override[OVERRIDES_MAX], *end;
    json_t *spec = NULL, *errors = NULL;
    struct sl_buf lines;
    int n = 0, rc;

    for (; *at && *at != '{' && (end = strchr(at, '\n')); at = end + 1) {
        *end = '\0';
        if (n < OVERRIDES_MAX)
            override[n++] = at;
    }
    rc = sl_json_parse(at, size - (size_t)(at - text), "spec", &spec, &err);
    if (rc) {
        fuzz_check_error(rc, err);
        free(text);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        json_t *before = json_deep_copy(spec);
        sl_err_clear(&err);
        rc = sl_spec_apply_override(spec, override[i], &err);
        if (rc) {
            fuzz_check_error(rc, err);
            fuzz_check(json_equal(before, spec));
        }
        json_decref(before);
    }
    fuzz_check(sl_spec_validate(spec, &errors, NULL) == 0);
    fuzz_check(json_array_size(errors) <= SL_SPEC_MAX_ERRORS);
    sl_buf_init(&lines, 1u << 20);
    sl_spec_errors_text(errors, &lines);
    if (json_array_size(errors) == 0)
        use_valid(spec);
    sl_buf_release(&lines);
    json_decref(errors);
    json_decref(spec);
    free(text);
    return 0;
}

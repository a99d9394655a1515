/* YAML configurations and single values of a command line. */
#include "base/json.h"
#include "base/refs.h"
#include "base/spec.h"
#include "base/yaml.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

/* What was read, written as JSON and read as YAML again, is the same value. */
static void check_round_trip(const json_t *json)
{
    char *text = sl_json_dump(json);
    json_t *again = NULL;

    /* JSON leaves control characters from U+007F on as they are, which YAML does not allow. */
    if (text && sl_yaml_parse(text, strlen(text), "again", &again, NULL) == 0)
        fuzz_check(json_equal(json, again));
    json_decref(again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *json = NULL, *errors = NULL;
    char *text = fuzz_text(data, size);
    int rc = sl_yaml_parse(text, size, "config", &json, &err);

    if (rc == 0) {
        check_round_trip(json);
        if (json_is_object(json)) {
            sl_refs_resolve(json, json, NULL);
            if (sl_spec_validate_config(json, &errors, NULL) == 0)
                json_decref(errors);
        }
        json_decref(json);
    } else {
        fuzz_check_error(rc, err);
    }
    sl_err_clear(&err);
    rc = sl_yaml_value(text, &json, &err);
    if (rc == 0)
        json_decref(json);
    else
        fuzz_check_error(rc, err);
    free(text);
    return 0;
}

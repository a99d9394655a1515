/* YAML: any text, single values of a command line, and NeMo's configurations as job specs. */
#include "base/config_yaml.h"
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

static void read_config(const char *path, const char *override, bool config_only)
{
    char *overrides[] = {(char *)(uintptr_t)override};
    struct sl_config_yaml_options options = {
        .overrides = overrides, .n_overrides = 1, .allow_unknown = config_only, .config_only = config_only};
    struct sl_err err = SL_ERR_INIT;
    struct sl_config_yaml config;
    int rc = sl_config_yaml_read(path, &options, &config, &err);

    if (rc) {
        fuzz_check_error(rc, err);
        return;
    }
    fuzz_check(json_is_object(config.spec) && json_is_array(config.errors) && json_is_array(config.notes));
    sl_config_yaml_release(&config);
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
    read_config(fuzz_file(data, size), "model.seed=3", false);
    read_config(fuzz_file(data, size), text, true);
    free(text);
    return 0;
}

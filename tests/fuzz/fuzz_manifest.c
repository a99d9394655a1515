/* Manifests of artifacts (JSON), and the names and references in them. */
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "base/json.h"
#include "tests/fuzz/fuzz.h"

static void use_text(const char *text)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_ref ref;
    int rc = sl_ref_parse(text, &ref, &err);

    if (rc == 0)
        fuzz_check(sl_name_valid(ref.name) && sl_name_valid(ref.version) &&
                   (!ref.file[0] || sl_entry_path_valid(ref.file)));
    else
        fuzz_check_error(rc, err);
    sl_alias_valid(text);
    fuzz_check(sl_version_number(text) >= -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *manifest = NULL, *problems = json_array();
    char *text = fuzz_text(data, size);

    use_text(text);
    if (sl_json_parse(text, size, "manifest", &manifest, NULL) == 0) {
        int rc = sl_manifest_check(manifest, problems, &err);
        if (rc < 0) {
            fuzz_check_error(rc, err);
        } else {
            size_t i;
            json_t *file;
            fuzz_check(json_array_size(problems) == 0 && sl_manifest_bytes(manifest) >= 0);
            json_array_foreach(json_object_get(manifest, "files"), i, file)
                fuzz_check(sl_entry_path_valid(sl_json_str(file, "path", "")));
        }
    }
    json_decref(manifest);
    json_decref(problems);
    free(text);
    return 0;
}

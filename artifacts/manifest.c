#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/store.h"
#include "base/digest.h"
#include "base/json.h"
#include <stdarg.h>
#include <string.h>

void sl_problem_add(json_t *problems, const char *path, const char *fmt, ...)
{
    if (!problems || json_array_size(problems) >= SL_PROBLEMS_MAX)
        return;
    va_list ap;
    va_start(ap, fmt);
    json_t *detail = json_vsprintf(fmt, ap);
    va_end(ap);
    json_array_append_new(problems, json_pack("{s:s, s:o}", "path", path, "detail",
                                              detail ? detail : json_string("not valid")));
}

/* Files are marked true in seen, the folders above them false; a clash of the two, or a second
 * file, is refused. */
static bool claim_path(json_t *seen, const char *path)
{
    if (json_object_get(seen, path))
        return false;
    char folder[SL_ENTRY_PATH_MAX + 1];
    for (const char *p = strchr(path, '/'); p; p = strchr(p + 1, '/')) {
        memcpy(folder, path, (size_t)(p - path));
        folder[p - path] = 0;
        const json_t *known = json_object_get(seen, folder);
        if (json_is_true(known))
            return false;
        if (!known)
            json_object_set_new(seen, folder, json_false());
    }
    return json_object_set_new(seen, path, json_true()) == 0;
}

/* One list of {path, sha256, bytes}; returns the number of faults. at: its place, "/files" or
 * "/files/0/entries". */
static size_t check_list(const json_t *list, const char *at, size_t *total, json_t *problems)
{
    size_t faults = 0, i;
    json_t *item, *seen = json_object();
    json_array_foreach((json_t *)list, i, item) {
        char here[96];
        snprintf(here, sizeof here, "%s/%zu", at, i);
        const json_t *name = json_object_get(item, "path");
        const char *path = json_string_value(name);
        const json_t *bytes = json_object_get(item, "bytes");
        const json_t *entries = json_object_get(item, "entries");
        if (++*total > SL_MANIFEST_MAX_FILES) {
            sl_problem_add(problems, here, "more than %d files and entries", SL_MANIFEST_MAX_FILES);
            faults++;
            break;
        }
        size_t before = faults;
        if (!sl_entry_path_valid(path) || strlen(path) != json_string_length(name)) {
            sl_problem_add(
                problems, here,
                "path must be relative, without empty, `.` or `..` parts, backslashes or "
                "control characters, at most %d bytes and %d deep",
                SL_ENTRY_PATH_MAX, SL_ENTRY_DEPTH_MAX);
            faults++;
        } else if (!claim_path(seen, path)) {
            sl_problem_add(problems, here, "%s is there already", path);
            faults++;
        }
        if (!sl_sha256_valid(sl_json_str(item, "sha256", ""))) {
            sl_problem_add(problems, here, "sha256 must be 64 lower-case hex digits");
            faults++;
        }
        if (!json_is_integer(bytes) || json_integer_value(bytes) < 0 ||
            json_integer_value(bytes) > SL_BLOB_MAX_BYTES) {
            sl_problem_add(problems, here, "bytes must be a number from 0 to %lld",
                           (long long)SL_BLOB_MAX_BYTES);
            faults++;
        }
        if (entries && strstr(at, "entries")) {
            sl_problem_add(problems, here, "an entry has no entries of its own");
            faults++;
        } else if (entries && !json_is_array(entries)) {
            sl_problem_add(problems, here, "entries must be a list");
            faults++;
        } else if (entries && before == faults) {
            char below[80];
            snprintf(below, sizeof below, "%s/%zu/entries", at, i);
            faults += check_list(entries, below, total, problems);
        }
    }
    json_decref(seen);
    return faults;
}

int sl_manifest_check(const json_t *manifest, json_t *problems, struct sl_err *err)
{
    const json_t *files = json_object_get(manifest, "files");
    size_t faults = 0, total = 0;
    if (!json_is_array(files) || json_array_size(files) == 0) {
        sl_problem_add(problems, "/files", "must be a list of at least one file");
        faults = 1;
    } else {
        faults = check_list(files, "/files", &total, problems);
    }
    if (faults)
        return sl_err_set(err, SL_SPEC, "the manifest has %zu fault%s", faults,
                          faults == 1 ? "" : "s");
    return 0;
}

int64_t sl_manifest_bytes(const json_t *manifest)
{
    int64_t sum = 0;
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(manifest, "files"), i, file)
        sum += json_integer_value(json_object_get(file, "bytes"));
    return sum;
}

json_t *sl_manifest_file(const json_t *manifest, const char *path)
{
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(manifest, "files"), i, file)
        if (strcmp(sl_json_str(file, "path", ""), path) == 0)
            return file;
    return NULL;
}

#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "artifacts/store.h"
#include "base/digest.h"
#include "base/json.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES (256u << 10)

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

static bool parts_valid(const json_t *parts, int64_t bytes)
{
    size_t i;
    json_t *part;
    if (!json_is_array(parts) ||
        (int64_t)json_array_size(parts) != (bytes + SL_PART_BYTES - 1) / SL_PART_BYTES)
        return false;
    json_array_foreach((json_t *)parts, i, part)
        if (!json_is_string(part) || !sl_sha256_valid(json_string_value(part)))
            return false;
    return true;
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
        const json_t *parts = json_object_get(item, "parts");
        if (parts && before == faults && !parts_valid(parts, json_integer_value(bytes))) {
            sl_problem_add(problems, here,
                           "parts must be a list of one sha256 for each %lld bytes of the file",
                           (long long)SL_PART_BYTES);
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

/* Ends a part and begins the next. */
static int end_part(json_t *parts, struct sl_sha256 *part, struct sl_err *err)
{
    char hex[SL_SHA256_HEX + 1];
    sl_sha256_hex(part, hex);
    if (json_array_append_new(parts, json_string(hex)))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return sl_sha256_init(part, err);
}

int sl_manifest_digests(const char *path, char ret_sha256[SL_SHA256_HEX + 1], int64_t *ret_bytes,
                        json_t **ret_parts, struct sl_err *err)
{
    struct sl_sha256 whole = {NULL}, part = {NULL};
    char hex[SL_SHA256_HEX + 1], *chunk = malloc(CHUNK_BYTES);
    json_t *parts = json_array();
    int64_t bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    if (fd < 0)
        rc = sl_err_errno(err, "opening %s", path);
    else if (!chunk || !parts)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        rc = sl_sha256_init(&whole, err);
    if (rc == 0)
        rc = sl_sha256_init(&part, err);
    while (rc == 0) {
        int64_t room = SL_PART_BYTES - bytes % SL_PART_BYTES;
        ssize_t n = read(fd, chunk, room < CHUNK_BYTES ? (size_t)room : CHUNK_BYTES);
        if (n < 0)
            rc = sl_err_errno(err, "reading %s", path);
        if (n <= 0)
            break;
        sl_sha256_update(&whole, chunk, (size_t)n);
        sl_sha256_update(&part, chunk, (size_t)n);
        bytes += n;
        if (bytes % SL_PART_BYTES == 0)
            rc = end_part(parts, &part, err);
    }
    if (rc == 0 && bytes % SL_PART_BYTES)
        rc = end_part(parts, &part, err);
    if (rc == 0) {
        sl_sha256_hex(&whole, hex);
        memcpy(ret_sha256, hex, sizeof hex);
        if (ret_bytes)
            *ret_bytes = bytes;
        *ret_parts = bytes > SL_PART_BYTES ? json_incref(parts) : NULL;
    }
    sl_sha256_release(&whole);
    sl_sha256_release(&part);
    json_decref(parts);
    free(chunk);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Archives from anybody, unpacked: plain (checksums put right), gzip'd or zstd. */
#include "artifacts/names.h"
#include "artifacts/pack.h"
#include "base/file.h"
#include "base/json.h"
#include "tests/fuzz/fuzz.h"
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

/* All that an archive could have left beside dest is found in the folder above it. */
static void check_alone(const char *dest, bool there)
{
    struct dirent *e;
    DIR *d = opendir(fuzz_dir());

    fuzz_check(d);
    while ((e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            fuzz_check(there && !strcmp(e->d_name, "dest"));
    closedir(d);
    fuzz_check(sl_file_exists(dest) == there);
}

static void check_entries(const char *dest, const json_t *entries)
{
    char path[SL_PATH_MAX];
    struct stat st;
    size_t i;
    json_t *entry;

    fuzz_check(json_array_size(entries) > 0 && json_array_size(entries) <= SL_UNPACK_MAX_ENTRIES);
    json_array_foreach((json_t *)entries, i, entry) {
        const char *name = sl_json_str(entry, "path", "");
        fuzz_check(sl_entry_path_valid(name) && sl_path(path, NULL, "%s/%s", dest, name) == 0);
        fuzz_check(lstat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0644);
        fuzz_check(st.st_size == sl_json_int(entry, "bytes", -1));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dest[SL_PATH_MAX];
    struct sl_err err = SL_ERR_INIT;
    json_t *entries = NULL;
    uint8_t *tar = (uint8_t *)fuzz_text(data, size);

    if (size > 4 && tar[0] != 0x1f && tar[0] != 0x28) /* neither gzip nor zstd */
        fuzz_fix_tar(tar, size);
    fuzz_check(sl_path(dest, NULL, "%s/dest", fuzz_dir()) == 0);
    int rc = sl_unpack_here(fuzz_file(tar, size), dest, NULL, &entries, &err);
    check_alone(dest, rc == 0);
    if (rc == 0)
        check_entries(dest, entries);
    else
        fuzz_check_error(rc, err);
    json_decref(entries);
    fuzz_check(sl_rmtree(dest, NULL) == 0);
    free(tar);
    return 0;
}

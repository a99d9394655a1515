#include "base/file.h"
#include "base/json.h"
#include "server/archive_priv.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOTES ".notes.json"

int sl_archive_path(const struct sl_archive *a, const char *run, const char *file,
                    char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    if (strlen(run) != 32 || strspn(run, "0123456789abcdef") != 32)
        return sl_err_set(err, SL_NOTFOUND, "no run %.64s", run);
    return sl_path(ret_path, err, "%s/%.2s/%s%s%s", a->dir, run, run, *file ? "/" : "", file);
}

static int note_path(const struct sl_archive *a, const char *run, char ret_path[SL_PATH_MAX],
                     struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = sl_archive_path(a, run, "", dir, err);

    return rc ? rc : sl_path(ret_path, err, "%s" NOTES, dir);
}

/* ---- records --------------------------------------------------------------------------------- */

int sl_archive_put(struct sl_archive *a, const json_t *run, struct sl_err *err)
{
    const char *id = sl_json_str(run, "run", "");
    char path[SL_PATH_MAX], dir[SL_PATH_MAX];
    int rc = sl_archive_path(a, id, "record.json", path, err);

    if (!rc)
        rc = sl_archive_path(a, id, "", dir, err);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc && !sl_file_exists(path))
        rc = sl_json_write(path, run, err);
    return rc;
}

int sl_archive_show(struct sl_archive *a, const char *run, json_t **ret_run, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_archive_path(a, run, "record.json", path, err);

    if (!rc && !sl_file_exists(path))
        rc = sl_err_set(err, SL_NOTFOUND, "no run %s", run);
    return rc ? rc : sl_json_read(path, SL_ARCHIVE_RECORD_MAX, ret_run, err);
}

int sl_archive_remove(struct sl_archive *a, const char *run, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_archive_path(a, run, "record.json", path, err);

    sl_archive_forget_tail(a, run);
    /* The record goes first and with it the run. */
    if (!rc && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "%s", path);
    if (!rc)
        rc = note_path(a, run, path, err);
    if (!rc && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "%s", path);
    if (!rc)
        rc = sl_archive_path(a, run, "", path, err);
    return rc ? rc : sl_rmtree(path, err);
}

static int by_text(const void *x, const void *y)
{
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}

/* Names of an id and this end. */
static int list_ids(struct sl_archive *a, const char *prefix, const char *end, json_t **ret_ids,
                    struct sl_err *err)
{
    char path[SL_PATH_MAX], **ids = NULL;
    size_t n = 0, room = 0;
    struct dirent *e;
    DIR *d;
    int rc = sl_path(path, err, "%s/%s", a->dir, prefix);

    if (rc)
        return rc;
    d = opendir(path);
    if (!d && errno != ENOENT)
        return sl_err_errno(err, "%s", path);
    while (d && !rc && (e = readdir(d))) {
        if (strspn(e->d_name, "0123456789abcdef") != 32 || strcmp(e->d_name + 32, end) != 0)
            continue;
        if (n == room) {
            room = 2 * room + 64;
            char **more = realloc(ids, room * sizeof *ids);
            ids = more ? more : ids;
            rc = more ? 0 : SL_NOMEM;
        }
        if (!rc && !(ids[n++] = strndup(e->d_name, 32)))
            rc = SL_NOMEM;
    }
    if (d)
        closedir(d);
    if (rc)
        sl_err_set(err, SL_NOMEM, "out of memory");
    else if (n)
        qsort(ids, n, sizeof *ids, by_text);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_string(ids[i]));
        free(ids[i]);
    }
    free(ids);
    if (rc)
        json_decref(list);
    else
        *ret_ids = list;
    return rc;
}

int sl_archive_ids(struct sl_archive *a, const char *prefix, json_t **ret_ids, struct sl_err *err)
{
    return list_ids(a, prefix, "", ret_ids, err);
}

int sl_archive_noted(struct sl_archive *a, const char *prefix, json_t **ret_ids, struct sl_err *err)
{
    return list_ids(a, prefix, NOTES, ret_ids, err);
}

bool sl_archive_has(struct sl_archive *a, const char *run)
{
    char path[SL_PATH_MAX];

    return !sl_archive_path(a, run, "record.json", path, NULL) && sl_file_exists(path);
}

/* ---- notes ----------------------------------------------------------------------------------- */

int sl_archive_note(struct sl_archive *a, const char *run, json_t **ret_note, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    json_t *note = NULL;
    int rc = note_path(a, run, path, err);

    if (!rc && sl_file_exists(path))
        rc = sl_json_read(path, SL_ARCHIVE_NOTE_MAX, &note, err);
    if (rc)
        return rc;
    *ret_note = json_pack("{s:s, s:O?}", "notes", sl_json_str(note, "notes", ""), "tags",
                          json_object_get(note, "tags"));
    json_decref(note);
    if (*ret_note && !json_is_array(json_object_get(*ret_note, "tags")))
        json_object_set_new(*ret_note, "tags", json_array());
    return *ret_note ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
}

int sl_archive_set_note(struct sl_archive *a, const char *run, const json_t *note, struct sl_err *err)
{
    char path[SL_PATH_MAX], dir[SL_PATH_MAX];
    int rc = note_path(a, run, path, err);

    if (!rc)
        rc = sl_path(dir, err, "%s/%.2s", a->dir, run);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc)
        rc = sl_json_write(path, note, err);
    return rc ? rc : sl_dir_sync(a->dir, err);
}

/* ---- opening --------------------------------------------------------------------------------- */

int sl_archive_open(const char *data_dir, struct sl_archive **ret_archive, struct sl_err *err)
{
    struct sl_archive *a = calloc(1, sizeof *a);
    char path[SL_PATH_MAX];
    int rc = a ? sl_path(path, err, "%s/runs", data_dir)
               : sl_err_set(err, SL_NOMEM, "out of memory");

    if (a)
        pthread_mutex_init(&a->mutex, NULL);
    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc) {
        a->dir = strdup(path);
        rc = a->dir ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    if (rc) {
        sl_archive_close(a);
        return sl_err_wrap(err, rc, "opening the archive of runs");
    }
    *ret_archive = a;
    return 0;
}

void sl_archive_close(struct sl_archive *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->mutex);
    free(a->dir);
    free(a);
}

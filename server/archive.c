#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/tfevents.h"
#include "server/archive.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#define LEVEL 3
#define NOTES ".notes.json"

struct sl_archive {
    char *dir;
};

static int run_path(const struct sl_archive *a, const char *run, const char *file,
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
    int rc = run_path(a, run, "", dir, err);

    return rc ? rc : sl_path(ret_path, err, "%s" NOTES, dir);
}

/* ---- events
 * ------------------------------------------------------------------------------------------------ */

/* The whole frames of a file: their bytes packed, their content. A torn end, from a crash, is left
 * out. No file: nothing. */
static int read_frames(const char *path, size_t *ret_whole, struct sl_buf *text, struct sl_err *err)
{
    struct sl_map map;
    size_t at = 0;
    int rc;

    *ret_whole = 0;
    if (!sl_file_exists(path))
        return 0;
    rc = sl_map_open(path, &map, err);
    while (!rc && at < map.len) {
        size_t packed = ZSTD_findFrameCompressedSize(map.data + at, map.len - at);
        unsigned long long bytes;
        char *to;
        if (ZSTD_isError(packed))
            break;
        bytes = ZSTD_getFrameContentSize(map.data + at, packed);
        to = bytes < SL_ARCHIVE_EVENTS_MAX ? sl_buf_reserve(text, (size_t)bytes + 1) : NULL;
        if (!to)
            rc = sl_err_set(err, SL_NOMEM, "%s: its events are more than %u bytes", path,
                            SL_ARCHIVE_EVENTS_MAX);
        else if (ZSTD_decompress(to, (size_t)bytes, map.data + at, packed) != bytes)
            break;
        else
            text->len += (size_t)bytes;
        if (!rc)
            at += packed;
    }
    sl_map_close(&map);
    if (text->len)
        text->p[text->len] = 0;
    *ret_whole = at;
    return rc;
}

/* 0 < 1 of two ids as "1700000000000-12". */
static bool id_before(const char *x, const char *y)
{
    unsigned long long x_ms, y_ms, x_n = 0, y_n = 0;
    char *end;

    x_ms = strtoull(x, &end, 10);
    if (*end == '-')
        x_n = strtoull(end + 1, NULL, 10);
    y_ms = strtoull(y, &end, 10);
    if (*end == '-')
        y_n = strtoull(end + 1, NULL, 10);
    return x_ms != y_ms ? x_ms < y_ms : x_n < y_n;
}

/* The id in a line's beginning, {"id":"..." */
static void line_id(const char *line, char ret_id[64])
{
    ret_id[0] = '0';
    ret_id[1] = 0;
    if (!strncmp(line, "{\"id\":\"", 7))
        snprintf(ret_id, 64, "%.*s", (int)strcspn(line + 7, "\"") % 64, line + 7);
}

static void last_id(const struct sl_buf *text, char ret_last[64])
{
    size_t at = text->len;

    ret_last[0] = '0';
    ret_last[1] = 0;
    if (!at)
        return;
    for (at--; at > 0 && text->p[at - 1] != '\n'; at--)
        ;
    line_id(text->p + at, ret_last);
}

int sl_archive_last_event(struct sl_archive *a, const char *run, char ret_last[64],
                          struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_buf text;
    size_t whole;
    int rc = run_path(a, run, "events.ndjson.zst", path, err);

    if (rc)
        return rc;
    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    rc = read_frames(path, &whole, &text, err);
    if (!rc)
        last_id(&text, ret_last);
    sl_buf_release(&text);
    return rc;
}

/* {"id": first, whatever the order of the rest: that is what line_id reads. */
static int add_line(struct sl_buf *text, const json_t *event)
{
    json_t *rest = json_copy((json_t *)(uintptr_t)event);
    const char *id = sl_json_str(event, "id", "0");
    char *json;
    int rc;

    json_object_del(rest, "id");
    json = sl_json_dump(rest);
    json_decref(rest);
    rc = json ? sl_buf_addf(text, "{\"id\":\"%s\",%s\n", id, json + 1) : SL_NOMEM;
    free(json);
    return rc;
}

static int write_frame(const char *path, size_t at, const struct sl_buf *text, struct sl_err *err)
{
    size_t room = ZSTD_compressBound(text->len), packed;
    char *frame = malloc(room);
    int fd = -1, rc = 0;

    if (!frame)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    packed = ZSTD_compress(frame, room, text->p, text->len, LEVEL);
    if (ZSTD_isError(packed))
        rc = sl_err_set(err, SL_IO, "%s: %s", path, ZSTD_getErrorName(packed));
    else if ((fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644)) < 0 ||
             ftruncate(fd, (off_t)at) || lseek(fd, 0, SEEK_END) < 0)
        rc = sl_err_errno(err, "%s", path);
    if (!rc)
        rc = sl_write_all(fd, frame, packed, err);
    if (!rc && fsync(fd))
        rc = sl_err_errno(err, "%s", path);
    if (fd >= 0)
        close(fd);
    free(frame);
    return rc;
}

int sl_archive_append(struct sl_archive *a, const char *run, const json_t *events,
                      struct sl_err *err)
{
    char dir[SL_PATH_MAX], parent[SL_PATH_MAX], path[SL_PATH_MAX], last[64];
    struct sl_buf old, text;
    const json_t *e;
    size_t i, whole;
    bool fresh;
    int rc = run_path(a, run, "", dir, err);

    if (!rc)
        rc = run_path(a, run, "events.ndjson.zst", path, err);
    if (!rc)
        rc = sl_path(parent, err, "%s/%.2s", a->dir, run);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (rc)
        return rc;
    fresh = !sl_file_exists(path);
    sl_buf_init(&old, SL_ARCHIVE_EVENTS_MAX);
    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    rc = read_frames(path, &whole, &old, err);
    last_id(&old, last);
    sl_buf_release(&old);
    json_array_foreach(events, i, e)
        if (!rc && id_before(last, sl_json_str(e, "id", "0")) && add_line(&text, e))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc && text.len)
        rc = write_frame(path, whole, &text, err);
    sl_buf_release(&text);
    if (!rc && fresh)
        rc = sl_dir_sync(dir, err);
    if (!rc && fresh)
        rc = sl_dir_sync(parent, err);
    return rc;
}

int sl_archive_events(struct sl_archive *a, const char *run, const char *after, int most,
                      json_t **ret_events, struct sl_err *err)
{
    char path[SL_PATH_MAX], last[64];
    json_t *events = json_array();
    struct sl_buf text;
    size_t whole;
    int rc = run_path(a, run, "events.ndjson.zst", path, err);

    if (!after || !*after)
        after = "0";
    snprintf(last, sizeof last, "%s", after);
    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    if (!rc)
        rc = read_frames(path, &whole, &text, err);
    for (char *line = text.p, *end; !rc && *line && json_array_size(events) < (size_t)most;
         line = end + 1) {
        char id[64];
        end = strchr(line, '\n');
        if (!end)
            break;
        line_id(line, id);
        if (!id_before(last, id))
            continue;
        json_t *e = json_loadb(line, (size_t)(end - line), 0, NULL);
        if (e)
            json_array_append_new(events, e);
        snprintf(last, sizeof last, "%s", id);
    }
    sl_buf_release(&text);
    if (rc)
        json_decref(events);
    else
        *ret_events = json_pack("{s:o, s:s, s:b}", "events", events, "last", last, "trimmed", 0);
    return rc;
}

int sl_archive_each(struct sl_archive *a, const char *run, sl_archive_event_fn *fn, void *arg, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_buf text;
    size_t whole;
    int rc = run_path(a, run, "events.ndjson.zst", path, err);

    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    if (!rc)
        rc = read_frames(path, &whole, &text, err);
    for (char *line = text.p, *end; !rc && (end = strchr(line, '\n')); line = end + 1) {
        json_t *event = json_loadb(line, (size_t)(end - line), 0, NULL);

        if (event)
            rc = fn(arg, event, err);
        json_decref(event);
    }
    sl_buf_release(&text);
    return rc;
}

static int add_tfevent(void *tfevents, const json_t *event, struct sl_err *err)
{
    return sl_tfevents_add(tfevents, event, err);
}

int sl_archive_tensorboard(struct sl_archive *a, const char *run, struct sl_err *err)
{
    struct sl_err full = SL_ERR_INIT;
    char dir[SL_PATH_MAX];
    struct sl_tfevents *t = NULL;
    int rc = run_path(a, run, "tensorboard", dir, err);

    if (!rc)
        rc = sl_tfevents_new(run, &t, err);
    if (!rc)
        rc = sl_archive_each(a, run, add_tfevent, t, &full);
    if (rc == SL_NOMEM && t) { /* over a limit: the run is archived without the rest */
        sl_log(SL_WARN, run, "%s", full.msg);
        rc = 0;
    } else if (rc && t) {
        sl_err_set(err, rc, "%s", full.msg);
    }
    if (!rc)
        rc = sl_tfevents_write(t, dir, err);
    sl_tfevents_free(t);
    return rc;
}

/* ---- records
 * ----------------------------------------------------------------------------------------------- */

int sl_archive_put(struct sl_archive *a, const json_t *run, struct sl_err *err)
{
    const char *id = sl_json_str(run, "run", "");
    char path[SL_PATH_MAX], dir[SL_PATH_MAX];
    int rc = run_path(a, id, "record.json", path, err);

    if (!rc)
        rc = run_path(a, id, "", dir, err);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc && !sl_file_exists(path))
        rc = sl_json_write(path, run, err);
    return rc;
}

int sl_archive_show(struct sl_archive *a, const char *run, json_t **ret_run, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = run_path(a, run, "record.json", path, err);

    if (!rc && !sl_file_exists(path))
        rc = sl_err_set(err, SL_NOTFOUND, "no run %s", run);
    return rc ? rc : sl_json_read(path, SL_ARCHIVE_RECORD_MAX, ret_run, err);
}

int sl_archive_remove(struct sl_archive *a, const char *run, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = run_path(a, run, "record.json", path, err);

    /* The record goes first and with it the run. */
    if (!rc && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "%s", path);
    if (!rc)
        rc = note_path(a, run, path, err);
    if (!rc && unlink(path) && errno != ENOENT)
        rc = sl_err_errno(err, "%s", path);
    if (!rc)
        rc = run_path(a, run, "", path, err);
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

    return !run_path(a, run, "record.json", path, NULL) && sl_file_exists(path);
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
    free(a->dir);
    free(a);
}

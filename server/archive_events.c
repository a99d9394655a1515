/* A run's events: zstd frames of lines, one behind the other. */
#include "base/json.h"
#include "base/log.h"
#include "base/tfevents.h"
#include "server/archive_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define LEVEL 3
#define EVENTS "events.ndjson.zst"

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

/* ---- the end of a run's events --------------------------------------------------------------- */

void sl_archive_forget_tail(struct sl_archive *a, const char *run)
{
    pthread_mutex_lock(&a->mutex);
    for (int i = 0; i < SL_ARCHIVE_TAILS; i++)
        if (strcmp(a->tail[i].run, run) == 0)
            a->tail[i].run[0] = 0;
    pthread_mutex_unlock(&a->mutex);
}

static void keep_tail(struct sl_archive *a, const char *run, struct sl_archive_tail *t)
{
    snprintf(t->run, sizeof t->run, "%s", run);
    sl_archive_forget_tail(a, run);
    pthread_mutex_lock(&a->mutex);
    a->tail[a->next] = *t;
    a->next = (a->next + 1) % SL_ARCHIVE_TAILS;
    pthread_mutex_unlock(&a->mutex);
}

static bool kept_tail(struct sl_archive *a, const char *run, size_t file_bytes, struct sl_archive_tail *ret)
{
    bool found = false;

    pthread_mutex_lock(&a->mutex);
    for (int i = 0; i < SL_ARCHIVE_TAILS && !found; i++)
        if (strcmp(a->tail[i].run, run) == 0 && a->tail[i].whole == file_bytes) {
            *ret = a->tail[i];
            found = true;
        }
    pthread_mutex_unlock(&a->mutex);
    return found;
}

/* Where the events of a run end. They are read once a start of the server, not once an append. */
static int find_tail(struct sl_archive *a, const char *run, const char *path, struct sl_archive_tail *ret,
                     struct sl_err *err)
{
    struct sl_buf text;
    struct stat st;
    int rc;

    *ret = (struct sl_archive_tail){.last = "0"};
    if (stat(path, &st))
        return errno == ENOENT ? 0 : sl_err_errno(err, "%s", path);
    if (kept_tail(a, run, (size_t)st.st_size, ret))
        return 0;
    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    rc = read_frames(path, &ret->whole, &text, err);
    if (!rc) {
        last_id(&text, ret->last);
        ret->bytes = text.len;
        keep_tail(a, run, ret);
    }
    sl_buf_release(&text);
    return rc;
}

int sl_archive_last_event(struct sl_archive *a, const char *run, char ret_last[64],
                          struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_archive_tail tail;
    int rc = sl_archive_path(a, run, EVENTS, path, err);

    if (!rc)
        rc = find_tail(a, run, path, &tail, err);
    if (!rc)
        memcpy(ret_last, tail.last, sizeof tail.last);
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

/* at: where it goes; what may lie behind is cut off. ret_packed: its bytes. */
static int write_frame(const char *path, size_t at, const struct sl_buf *text, size_t *ret_packed,
                       struct sl_err *err)
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
    *ret_packed = packed;
    return rc;
}

int sl_archive_append(struct sl_archive *a, const char *run, const json_t *events,
                      struct sl_err *err)
{
    char dir[SL_PATH_MAX], parent[SL_PATH_MAX], path[SL_PATH_MAX];
    struct sl_archive_tail tail;
    struct sl_buf text;
    const json_t *e;
    size_t i, packed = 0;
    bool fresh;
    int rc = sl_archive_path(a, run, "", dir, err);

    if (!rc)
        rc = sl_archive_path(a, run, EVENTS, path, err);
    if (!rc)
        rc = sl_path(parent, err, "%s/%.2s", a->dir, run);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc)
        rc = find_tail(a, run, path, &tail, err);
    if (rc)
        return rc;
    fresh = !sl_file_exists(path);
    sl_buf_init(&text, SL_ARCHIVE_EVENTS_MAX);
    json_array_foreach(events, i, e)
        if (!rc && id_before(tail.last, sl_json_str(e, "id", "0")) && add_line(&text, e))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc && tail.bytes + text.len >= SL_ARCHIVE_EVENTS_MAX)
        rc = sl_err_set(err, SL_NOMEM, "%s: its events are more than %u bytes", path, SL_ARCHIVE_EVENTS_MAX);
    if (!rc && text.len) {
        sl_archive_forget_tail(a, run); /* until the frame is durable */
        rc = write_frame(path, tail.whole, &text, &packed, err);
    }
    if (!rc && text.len) {
        tail.whole += packed;
        tail.bytes += text.len;
        last_id(&text, tail.last);
        keep_tail(a, run, &tail);
    }
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
    int rc = sl_archive_path(a, run, EVENTS, path, err);

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
    int rc = sl_archive_path(a, run, EVENTS, path, err);

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
    int rc = sl_archive_path(a, run, "tensorboard", dir, err);

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

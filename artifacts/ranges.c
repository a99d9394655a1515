/* Long because a file's parts, its lanes and its hashing change one state together. */
#include "artifacts/ranges.h"
#include "artifacts/follow.h"
#include "artifacts/job.h"
#include "artifacts/web.h"
#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POLL_MS 100
#define CHUNK_BYTES (256u << 10)
#define HELD_BYTES (256u << 10) /* 1u << 20 leaves a core's cache: slower */

enum state { MISSING, TAKEN, WHOLE };

struct part {
    enum state state;
    int64_t got; /* of its bytes, from its beginning, that are in the file */
};

struct lane {
    struct sl_job job;
    struct ranges *of;
    int part;     /* -1: idle */
    bool checked; /* the answer's head */
    char *held;   /* came and is not written yet: libcurl gives little at a time */
    size_t held_len;
};

struct ranges {
    const struct sl_transfer *t;
    const struct sl_want *want;
    struct sl_fill *fill;
    struct part *parts;
    int n, whole, list_fd;
    char list[SL_PATH_MAX];
    struct lane lanes[SL_TRANSFER_LANES];
    CURLM *multi;
    int failures; /* without a byte between them */
    int64_t retry_us;
    bool unsupported;
    char etag[SL_JOB_ETAG_MAX]; /* of the first answer */
    int64_t front; /* all below it is in the file */
    struct sl_follow follow;
};

static int64_t part_bytes(const struct ranges *r, int i)
{
    int64_t left = r->want->bytes - i * SL_PART_BYTES;
    return left < SL_PART_BYTES ? left : SL_PART_BYTES;
}

/* ---- what is there --------------------------------------------------------------------------- */

/* Lets the digest follow. */
static void move_front(struct ranges *r)
{
    int64_t front = r->front;
    while (front < r->want->bytes) {
        const struct part *p = &r->parts[front / SL_PART_BYTES];
        int64_t end = front / SL_PART_BYTES * SL_PART_BYTES + p->got;
        if (end <= front)
            break;
        front = end;
    }
    if (front != r->front)
        sl_follow_to(&r->follow, front);
    r->front = front;
}

/* Writes what a lane holds. */
static int flush(struct ranges *r, struct lane *lane, struct sl_err *err)
{
    struct part *p = &r->parts[lane->part];
    int64_t at = lane->part * SL_PART_BYTES + p->got;
    size_t len = lane->held_len;
    lane->held_len = 0;
    for (size_t done = 0; done < len;) {
        ssize_t w = pwrite(r->fill->fd, lane->held + done, len - done, at + (int64_t)done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return sl_err_errno(err,
                                errno == ENOSPC || errno == EDQUOT
                                    ? "the disk of the cache %s is full"
                                    : "cache %s",
                                r->fill->cache->dir);
        done += (size_t)w;
    }
    /* The disk begins at once; else all would be left to the end. */
    if ((p->got + (int64_t)len) / SL_FOLLOW_STEP != p->got / SL_FOLLOW_STEP)
        sync_file_range(r->fill->fd, lane->part * SL_PART_BYTES + p->got / SL_FOLLOW_STEP * SL_FOLLOW_STEP,
                        SL_FOLLOW_STEP, SYNC_FILE_RANGE_WRITE);
    p->got += (int64_t)len;
    move_front(r);
    return 0;
}

/* ---- what an earlier process left ------------------------------------------------------------ */

static int mark_whole(struct ranges *r, int i, bool write_down, struct sl_err *err)
{
    uint32_t number = (uint32_t)i;
    r->parts[i] = (struct part){WHOLE, part_bytes(r, i)};
    r->whole++;
    return write_down ? sl_write_all(r->list_fd, &number, sizeof number, err) : 0;
}

static int load(struct ranges *r, bool *resumed, struct sl_err *err)
{
    uint32_t number;
    int64_t left = r->fill->bytes; /* hashed by whoever began it: what a single stream left */
    int rc = sl_path(r->list, err, "%s.parts", r->fill->path);
    if (rc)
        return rc;
    r->list_fd = open(r->list, O_RDWR | O_CLOEXEC);
    if (r->list_fd >= 0 && left > 0) { /* the file has gaps: only what is listed counts */
        while (read(r->list_fd, &number, sizeof number) == sizeof number)
            if (number < (uint32_t)r->n && r->parts[number].state == MISSING)
                mark_whole(r, (int)number, false, NULL);
    } else {
        if (r->list_fd >= 0)
            close(r->list_fd);
        r->list_fd = open(r->list, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (r->list_fd < 0)
            return sl_err_errno(err, "creating %s", r->list);
        for (int i = 0; rc == 0 && left > 0 && i < r->n; left -= part_bytes(r, i), i++) {
            if (left >= part_bytes(r, i))
                rc = mark_whole(r, i, true, err);
            else
                r->parts[i].got = left;
        }
    }
    *resumed = *resumed || r->whole > 0;
    for (int i = 0; i < r->n; i++)
        sl_watch_progress(&r->t->watch, r->parts[i].got);
    return rc;
}

/* ---- lanes ----------------------------------------------------------------------------------- */

/* Without a digest, only the ETag tells that this answer is of the same file as the others. */
static bool same_file(struct ranges *r, struct sl_job *j)
{
    if (r->want->sha256)
        return true;
    if (j->etag[0] != '"') {
        r->unsupported = true;
        return false;
    }
    if (!r->etag[0])
        memcpy(r->etag, j->etag, sizeof r->etag);
    if (strcmp(r->etag, j->etag) == 0)
        return true;
    sl_err_set(&j->err, SL_DATA, "it was changed while it was fetched");
    return false;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct sl_job *j = arg;
    struct lane *lane = arg; /* the job is its first member */
    struct ranges *r = lane->of;
    size_t len = size * n;
    long status = 0;
    curl_easy_getinfo(j->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 206 && status != 200) {
        size_t room = j->reply.max - j->reply.len;
        sl_buf_add(&j->reply, data, len < room ? len : room);
        return len;
    }
    struct part *p = &r->parts[lane->part];
    int64_t got = p->got + (int64_t)lane->held_len, at = lane->part * SL_PART_BYTES + got;
    if (status == 200) {
        r->unsupported = true;
        return 0;
    }
    if (!lane->checked && j->range_from != at) {
        sl_err_set(&j->err, SL_DATA, "the server sent byte %lld where %lld was asked for",
                   (long long)j->range_from, (long long)at);
        return 0;
    }
    if (!lane->checked && j->range_total >= 0 && j->range_total != r->want->bytes) {
        sl_err_set(&j->err, SL_DATA, "it has %lld bytes there instead of %lld",
                   (long long)j->range_total, (long long)r->want->bytes);
        return 0;
    }
    if (!lane->checked && !same_file(r, j))
        return 0;
    lane->checked = true;
    if (got + (int64_t)len > part_bytes(r, lane->part)) {
        sl_err_set(&j->err, SL_DATA, "the server sent more than was asked for");
        return 0;
    }
    for (size_t done = 0, n_now; done < len; done += n_now) {
        n_now = HELD_BYTES - lane->held_len;
        n_now = n_now < len - done ? n_now : len - done;
        memcpy(lane->held + lane->held_len, data + done, n_now);
        lane->held_len += n_now;
        if (lane->held_len == HELD_BYTES && flush(r, lane, &j->err))
            return 0;
    }
    r->failures = 0;
    sl_watch_progress(&r->t->watch, (int64_t)len);
    sl_pace_take(r->t->pace, (int64_t)len, &r->t->watch); /* holds all lanes back */
    return len;
}

/* Gives an idle lane the first part that nobody has. */
static int give_part(struct ranges *r, struct lane *lane, struct sl_err *err)
{
    char range[64];
    int i = (int)(r->front / SL_PART_BYTES);
    while (i < r->n && r->parts[i].state != MISSING)
        i++;
    if (i == r->n)
        return 0;
    sl_web_reset(lane->job.curl);
    int64_t first = i * SL_PART_BYTES;
    snprintf(range, sizeof range, "%" PRId64 "-%" PRId64, first + r->parts[i].got, first + part_bytes(r, i) - 1);
    curl_easy_setopt(lane->job.curl, CURLOPT_RANGE, range);
    lane->checked = false;
    lane->job.range_from = lane->job.range_total = -1;
    if (sl_job_prepare(&lane->job, NULL))
        return sl_job_judge(&lane->job, CURLE_OK, err);
    curl_easy_setopt(lane->job.curl, CURLOPT_PRIVATE, lane);
    if (curl_multi_add_handle(r->multi, lane->job.curl) != CURLM_OK) {
        sl_job_done(&lane->job);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    lane->part = i;
    r->parts[i].state = TAKEN;
    return 0;
}

static int lane_ended(struct ranges *r, struct lane *lane, CURLcode code, struct sl_err *err)
{
    int i = lane->part;
    struct sl_job *j = &lane->job;
    flush(r, lane, &j->err);
    curl_easy_getinfo(j->curl, CURLINFO_RESPONSE_CODE, &j->status);
    curl_multi_remove_handle(r->multi, j->curl);
    sl_job_done(j);
    lane->part = -1;
    r->parts[i].state = MISSING;
    if (r->unsupported)
        return 0;
    if (r->parts[i].got == part_bytes(r, i)) {
        sync_file_range(r->fill->fd, i * SL_PART_BYTES, part_bytes(r, i), SYNC_FILE_RANGE_WRITE);
        return mark_whole(r, i, true, err);
    }
    if (code == CURLE_OK && !j->err.code && (j->status == 206 || j->status == 200)) {
        r->unsupported = j->status == 200;
        code = CURLE_PARTIAL_FILE;
        snprintf(j->curl_msg, sizeof j->curl_msg, "the answer ended early");
    }
    struct sl_err fault = SL_ERR_INIT;
    int rc = r->unsupported ? 0 : sl_job_judge(j, code, &fault);
    if (rc == 0)
        return 0;
    r->failures++;
    if (rc != SL_RETRY || r->failures >= sl_job_tries(r->t) * SL_TRANSFER_LANES)
        return sl_err_set(err, rc, "%s%s", fault.msg,
                          rc == SL_RETRY ? ": gave up after several tries; is the server up?" : "");
    int64_t at = sl_boot_us() + sl_job_pause_us(j, 1 + r->failures / SL_TRANSFER_LANES);
    if (at > r->retry_us)
        r->retry_us = at;
    return 0;
}

static int fetch_parts(struct ranges *r, struct sl_err *err)
{
    int rc = 0, running = 0;
    while (rc == 0 && r->whole < r->n && !r->unsupported) {
        for (int i = 0; rc == 0 && i < SL_TRANSFER_LANES && sl_boot_us() >= r->retry_us; i++)
            if (r->lanes[i].part < 0)
                rc = give_part(r, &r->lanes[i], err);
        if (rc)
            break;
        curl_multi_perform(r->multi, &running);
        bool ended = false; /* then a lane is free for the next part at once */
        int left;
        for (CURLMsg *m; rc == 0 && (m = curl_multi_info_read(r->multi, &left));) {
            struct lane *lane = NULL;
            CURLcode code = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&lane);
            if (m->msg == CURLMSG_DONE && lane) {
                rc = lane_ended(r, lane, code, err);
                ended = true;
            }
        }
        if (rc == 0 && sl_watch_stop(&r->t->watch))
            rc = sl_err_set(err, SL_CANCELLED, "%s: stopped", r->want->what);
        if (rc == 0 && !ended && r->whole < r->n)
            curl_multi_poll(r->multi, NULL, 0, POLL_MS, NULL);
    }
    for (int i = 0; i < SL_TRANSFER_LANES; i++)
        if (r->lanes[i].part >= 0) {
            curl_multi_remove_handle(r->multi, r->lanes[i].job.curl);
            sl_job_done(&r->lanes[i].job);
            flush(r, &r->lanes[i], NULL); /* for who goes on */
            r->parts[r->lanes[i].part].state = MISSING;
            r->lanes[i].part = -1;
        }
    return rc;
}

/* ---- wrong parts ----------------------------------------------------------------------------- */

static bool digest_is_right(struct ranges *r)
{
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    struct sl_sha256 d = {copy};
    char hex[SL_SHA256_HEX + 1] = "";
    if (copy && EVP_MD_CTX_copy_ex(copy, r->fill->digest.ctx) == 1)
        sl_sha256_hex(&d, hex);
    sl_sha256_release(&d);
    return strcmp(hex, r->want->sha256) == 0;
}

/* Marks those that are not what the manifest says as missing. */
static int drop_wrong(struct ranges *r, int *ret_wrong, struct sl_err *err)
{
    char *chunk = malloc(CHUNK_BYTES), hex[SL_SHA256_HEX + 1];
    int rc = chunk ? 0 : sl_err_set(err, SL_NOMEM, "out of memory"), wrong = 0;
    for (int i = 0; rc == 0 && i < r->n; i++) {
        const char *right = json_string_value(json_array_get(r->want->parts, (size_t)i));
        struct sl_sha256 d;
        rc = sl_sha256_init(&d, err);
        if (rc)
            break;
        for (int64_t done = 0, len = part_bytes(r, i); rc == 0 && done < len;) {
            ssize_t n = pread(r->fill->fd, chunk,
                              len - done < CHUNK_BYTES ? (size_t)(len - done) : CHUNK_BYTES,
                              i * SL_PART_BYTES + done);
            if (n <= 0)
                rc = sl_err_errno(err, "reading %s", r->fill->path);
            else
                sl_sha256_update(&d, chunk, (size_t)n);
            done += n;
        }
        sl_sha256_hex(&d, hex);
        if (rc == 0 && right && strcmp(hex, right) != 0) {
            sl_watch_progress(&r->t->watch, -r->parts[i].got);
            r->parts[i] = (struct part){MISSING, 0};
            r->whole--;
            wrong++;
        }
    }
    free(chunk);
    /* The list is made anew from what is right. */
    if (rc == 0 && wrong && (ftruncate(r->list_fd, 0) || lseek(r->list_fd, 0, SEEK_SET) < 0))
        rc = sl_err_errno(err, "emptying %s", r->list);
    for (uint32_t i = 0; rc == 0 && wrong && i < (uint32_t)r->n; i++)
        if (r->parts[i].state == WHOLE)
            rc = sl_write_all(r->list_fd, &i, sizeof i, err);
    *ret_wrong = wrong;
    return rc;
}

static int run(struct ranges *r, struct sl_err *err)
{
    int rc = 0;
    for (int round = 1; rc == 0; round++) {
        int wrong = 0;
        r->front = 0;
        rc = sl_follow_begin(&r->follow, r->fill->fd, r->fill->path, r->want->bytes, err);
        if (rc)
            break;
        move_front(r);
        rc = fetch_parts(r, err);
        bool finish = rc == 0 && !r->unsupported;
        int hash_rc = sl_follow_end(&r->follow, finish, &r->fill->digest, rc ? NULL : err);
        rc = rc ? rc : hash_rc;
        if (rc || r->unsupported || !r->want->parts || !r->want->sha256 ||
            round > SL_RANGES_ROUNDS || digest_is_right(r))
            break;
        rc = drop_wrong(r, &wrong, err);
        if (wrong == 0)
            break;
    }
    return rc;
}

int sl_ranges_fill(const struct sl_transfer *t, struct sl_fill *fill, const struct sl_want *want,
                   bool *resumed, char ret_etag[SL_JOB_ETAG_MAX], bool *ret_ranges,
                   struct sl_err *err)
{
    struct ranges *r = calloc(1, sizeof *r);
    int64_t n = (want->bytes + SL_PART_BYTES - 1) / SL_PART_BYTES;
    int lanes = 0, rc = 0;
    if (r)
        *r = (struct ranges){.t = t,
                             .want = want,
                             .fill = fill,
                             .n = (int)n,
                             .list_fd = -1,
                             .parts = calloc((size_t)n, sizeof *r->parts),
                             .multi = NULL};
    if (!r || !r->parts) {
        free(r);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    struct sl_transfer own = *t;
    own.curl = NULL;
    r->t = &own;
    for (; rc == 0 && lanes < SL_TRANSFER_LANES; lanes++) {
        rc = sl_job_init(&r->lanes[lanes].job, &own, want->what, want->url, on_body, err);
        r->lanes[lanes].job.fill = fill;
        r->lanes[lanes].of = r;
        r->lanes[lanes].part = -1;
        r->lanes[lanes].held = malloc(HELD_BYTES);
        if (rc == 0 && !r->lanes[lanes].held)
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
    }
    r->multi = curl_multi_init();
    if (rc == 0 && !r->multi)
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    if (rc == 0)
        rc = load(r, resumed, err);
    if (rc == 0)
        rc = run(r, err);
    if (rc == 0 && r->unsupported) { /* from the beginning, in one stream */
        for (int i = 0; i < r->n; i++)
            sl_watch_progress(&t->watch, -r->parts[i].got);
        rc = sl_fill_restart(fill, err);
        *resumed = false;
    } else if (rc == 0) {
        fill->bytes = want->bytes;
        memcpy(ret_etag, r->etag, sizeof r->etag);
        *ret_ranges = true;
    }
    if (r->list_fd >= 0) {
        close(r->list_fd);
        if (rc == 0) /* a partial file without a list has no gaps */
            unlink(r->list);
    }
    for (int i = 0; i < lanes; i++) {
        sl_job_release(&r->lanes[i].job);
        free(r->lanes[i].held);
    }
    curl_multi_cleanup(r->multi);
    free(r->parts);
    free(r);
    return rc;
}

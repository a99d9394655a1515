#include "server/blob_batch.h"
#include "base/buf.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TYPE "application/octet-stream"
#define ABSENT (-1)
#define LINE_BYTES (SL_SHA256_HEX + 32)

/* An answer on its way out. Blobs are opened one at a time, so that it costs one descriptor at most. */
struct batch {
    struct sl_store *store;
    size_t n, next; /* next: whose line comes next */
    struct {
        char sha256[SL_SHA256_HEX + 1];
        int64_t bytes; /* or ABSENT */
    } blobs[SL_BLOBS_AT_ONCE];
    char line[LINE_BYTES];
    size_t line_len, line_sent;
    int fd; /* -1: between two blobs */
    int64_t left;
};

static size_t line_of(const struct batch *b, size_t i, char line[LINE_BYTES])
{
    const char *sha256 = b->blobs[i].sha256;
    int n = b->blobs[i].bytes == ABSENT
                ? snprintf(line, LINE_BYTES, "%s -\n", sha256)
                : snprintf(line, LINE_BYTES, "%s %" PRId64 "\n", sha256, b->blobs[i].bytes);
    return (size_t)n;
}

/* Goes on to the next blob. False: it has gone, or changed its size, since its line was counted. */
static bool advance(struct batch *b)
{
    int64_t bytes = 0;
    size_t i = b->next++;
    b->line_len = line_of(b, i, b->line);
    b->line_sent = 0;
    if (b->blobs[i].bytes == ABSENT)
        return true;
    if (sl_blob_open_here(b->store, b->blobs[i].sha256, &b->fd, &bytes, NULL))
        return false;
    b->left = bytes;
    return bytes == b->blobs[i].bytes;
}

static int64_t read_some(void *arg, char *to, size_t most)
{
    struct batch *b = arg;
    size_t done = 0;
    while (done < most) {
        if (b->line_sent < b->line_len) {
            size_t n = b->line_len - b->line_sent;
            n = n < most - done ? n : most - done;
            memcpy(to + done, b->line + b->line_sent, n);
            b->line_sent += n;
            done += n;
        } else if (b->left > 0) {
            size_t room = most - done;
            ssize_t n = read(b->fd, to + done, b->left < (int64_t)room ? (size_t)b->left : room);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return -1;
            b->left -= n;
            done += (size_t)n;
        } else {
            if (b->fd >= 0)
                close(b->fd);
            b->fd = -1;
            if (b->next == b->n)
                break;
            if (!advance(b))
                return -1;
        }
    }
    return (int64_t)done;
}

static void release(void *arg)
{
    struct batch *b = arg;
    if (b->fd >= 0)
        close(b->fd);
    free(b);
}

/* The digests of a list with commas between them. */
static int parse(const char *list, struct batch *b, struct sl_err *err)
{
    if (!*list)
        return sl_err_set(err, SL_SPEC, "no digests: ask with ?sha256=DIGEST,DIGEST,..., at most %d of them",
                          SL_BLOBS_AT_ONCE);
    for (const char *p = list; p;) {
        size_t len = strcspn(p, ",");
        if (b->n == SL_BLOBS_AT_ONCE)
            return sl_err_set(err, SL_SPEC, "more than %d digests: ask for them in several requests",
                              SL_BLOBS_AT_ONCE);
        char *sha256 = b->blobs[b->n].sha256;
        if (len == SL_SHA256_HEX)
            memcpy(sha256, p, SL_SHA256_HEX);
        if (len != SL_SHA256_HEX || !sl_sha256_valid(sha256))
            return sl_err_set(err, SL_SPEC, "not a sha256 (64 lower-case hex digits): %.*s",
                              len < 80 ? (int)len : 80, p);
        b->n++;
        p = p[len] ? p + len + 1 : NULL;
    }
    return 0;
}

void sl_blob_batch_reply(struct sl_http_req *req, struct sl_store *store)
{
    struct sl_err err = SL_ERR_INIT;
    const char *list = sl_http_query(req, "sha256");
    char line[LINE_BYTES];
    int64_t sum = 0;
    struct batch *b = calloc(1, sizeof *b);
    int rc = b ? parse(list ? list : "", b, &err) : sl_err_set(&err, SL_NOMEM, "out of memory");
    if (rc) {
        free(b);
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    b->store = store;
    b->fd = -1;
    for (size_t i = 0; i < b->n; i++) {
        int64_t *bytes = &b->blobs[i].bytes;
        if (sl_blob_size_here(store, b->blobs[i].sha256, bytes, NULL) || *bytes > SL_BLOBS_EACH_MAX)
            *bytes = ABSENT;
        sum += (int64_t)line_of(b, i, line) + (*bytes == ABSENT ? 0 : *bytes);
    }
    sl_http_set_header(req, "Cache-Control", "no-store"); /* what is absent now may come */
    sl_http_reply_read(req, TYPE, sum, read_some, release, b);
}

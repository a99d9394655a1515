/* Answers without an end: bytes that another thread adds while the connection sleeps suspended.
 *
 * Two hold a stream: the response, until the connection is done with it, and who sends. */
#include "server/http_priv.h"
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES 4096 /* what one call of the reader may give */

struct sl_http_stream {
    pthread_mutex_t mutex;
    struct MHD_Connection *conn; /* only while `asleep`: MHD frees no suspended connection */
    struct sl_buf waiting;
    size_t sent; /* bytes of `waiting` that are gone */
    int holders;
    bool asleep, ended, gone;
};

static void drop(struct sl_http_stream *s)
{
    pthread_mutex_lock(&s->mutex);
    bool last = --s->holders == 0;
    pthread_mutex_unlock(&s->mutex);
    if (!last)
        return;
    pthread_mutex_destroy(&s->mutex);
    sl_buf_release(&s->waiting);
    free(s);
}

/* On a socket thread. */
static ssize_t read_some(void *arg, uint64_t pos, char *to, size_t most)
{
    struct sl_http_stream *s = arg;
    ssize_t n = 0;
    (void)pos;
    pthread_mutex_lock(&s->mutex);
    size_t left = s->waiting.len - s->sent;
    if (left > 0) {
        n = (ssize_t)(left < most ? left : most);
        memcpy(to, s->waiting.p + s->sent, (size_t)n);
        s->sent += (size_t)n;
        if (s->sent == s->waiting.len) {
            sl_buf_reset(&s->waiting);
            s->sent = 0;
        }
    } else if (s->ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        MHD_suspend_connection(s->conn);
        s->asleep = true;
    }
    pthread_mutex_unlock(&s->mutex);
    return n;
}

static void closed(void *arg)
{
    struct sl_http_stream *s = arg;
    pthread_mutex_lock(&s->mutex);
    s->gone = true;
    pthread_mutex_unlock(&s->mutex);
    drop(s);
}

static void wake(struct sl_http_stream *s)
{
    if (s->asleep) {
        s->asleep = false;
        MHD_resume_connection(s->conn);
    }
}

struct sl_http_stream *sl_http_reply_stream(struct sl_http_req *req, const char *content_type,
                                            size_t most_bytes)
{
    struct sl_http_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->mutex, NULL);
    sl_buf_init(&s->waiting, most_bytes);
    s->conn = req->conn;
    s->holders = 1;
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES,
                                                               read_some, s, closed);
    if (!r) {
        drop(s);
        return NULL;
    }
    s->holders = 2;
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "Connection", "close"); /* its end is the end */
    MHD_add_response_header(r, "X-Accel-Buffering", "no"); /* nginx's: do not collect this */
    sl_http_answer(req, 200, content_type, r);
    return s;
}

int sl_http_stream_send(struct sl_http_stream *s, const void *data, size_t len)
{
    pthread_mutex_lock(&s->mutex);
    int rc = s->gone ? SL_CANCELLED : 0;
    if (!rc && s->sent > 0) {
        sl_buf_consume(&s->waiting, s->sent);
        s->sent = 0;
    }
    if (!rc && sl_buf_add(&s->waiting, data, len)) {
        rc = SL_RETRY;
        s->ended = true;
    }
    wake(s);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

size_t sl_http_stream_waiting(struct sl_http_stream *s)
{
    pthread_mutex_lock(&s->mutex);
    size_t n = s->waiting.len - s->sent;
    pthread_mutex_unlock(&s->mutex);
    return n;
}

bool sl_http_stream_gone(struct sl_http_stream *s)
{
    pthread_mutex_lock(&s->mutex);
    bool gone = s->gone;
    pthread_mutex_unlock(&s->mutex);
    return gone;
}

void sl_http_stream_end(struct sl_http_stream *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    s->ended = true;
    wake(s);
    pthread_mutex_unlock(&s->mutex);
    drop(s);
}

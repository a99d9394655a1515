/* Many files at once: threads that each take the next one, each with connections of its own. */
#include "artifacts/transfer.h"
#include "artifacts/web.h"
#include <pthread.h>

struct many {
    const struct sl_transfer *t;
    const struct sl_cache *cache;
    const struct sl_want *wants;
    struct sl_got *gots;
    size_t n, next;
    struct sl_signer signer; /* one request at a time: it may look its keys up anew */
    pthread_mutex_t mutex, watch_mutex, sign_mutex;
    struct sl_err *err;
    int rc;
};

static void on_expect(void *arg, int64_t delta_bytes)
{
    struct many *m = arg;
    pthread_mutex_lock(&m->watch_mutex);
    sl_watch_expect(&m->t->watch, delta_bytes);
    pthread_mutex_unlock(&m->watch_mutex);
}

static void on_progress(void *arg, int64_t delta_bytes)
{
    struct many *m = arg;
    pthread_mutex_lock(&m->watch_mutex);
    sl_watch_progress(&m->t->watch, delta_bytes);
    pthread_mutex_unlock(&m->watch_mutex);
}

static bool on_stop(void *arg)
{
    struct many *m = arg;
    pthread_mutex_lock(&m->mutex);
    bool failed = m->rc != 0;
    pthread_mutex_unlock(&m->mutex);
    pthread_mutex_lock(&m->watch_mutex);
    bool stop = failed || sl_watch_stop(&m->t->watch);
    pthread_mutex_unlock(&m->watch_mutex);
    return stop;
}

static int on_sign(void *arg, const char *method, const char *url, const char *sha256,
                   struct curl_slist **headers, struct sl_err *err)
{
    struct many *m = arg;
    const struct sl_signer *own = m->t->signer;
    pthread_mutex_lock(&m->sign_mutex);
    int rc = own->sign(own->arg, method, url, sha256, headers, err);
    pthread_mutex_unlock(&m->sign_mutex);
    return rc;
}

static void *work(void *arg)
{
    struct many *m = arg;
    struct sl_transfer t = *m->t;
    struct sl_err err = SL_ERR_INIT;
    t.watch = (struct sl_watch){m, on_expect, on_progress, on_stop};
    if (t.signer && t.signer->sign)
        t.signer = &m->signer;
    t.bytes_per_s = m->t->bytes_per_s / SL_TRANSFER_AT_ONCE;
    t.curl = sl_web_new(NULL);
    for (;;) {
        pthread_mutex_lock(&m->mutex);
        size_t i = m->rc ? m->n : m->next++;
        pthread_mutex_unlock(&m->mutex);
        if (i >= m->n)
            break;
        int rc = sl_transfer_want(&t, m->cache, &m->wants[i], &m->gots[i], &err);
        if (rc == 0)
            continue;
        pthread_mutex_lock(&m->mutex);
        if (m->rc == 0) {
            m->rc = rc;
            sl_err_set(m->err, rc, "%s", err.msg);
        }
        pthread_mutex_unlock(&m->mutex);
    }
    curl_easy_cleanup(t.curl);
    return NULL;
}

int sl_transfer_many(const struct sl_transfer *t, const struct sl_cache *cache,
                     const struct sl_want *wants, size_t n, struct sl_got *gots, struct sl_err *err)
{
    struct many m = {.t = t, .cache = cache, .wants = wants, .gots = gots, .n = n, .err = err};
    pthread_t threads[SL_TRANSFER_AT_ONCE];
    size_t started = 0;
    if (n == 1)
        return sl_transfer_want(t, cache, wants, gots, err);
    pthread_mutex_init(&m.mutex, NULL);
    pthread_mutex_init(&m.watch_mutex, NULL);
    pthread_mutex_init(&m.sign_mutex, NULL);
    m.signer =
        (struct sl_signer){.arg = &m, .sign = on_sign, .follow = t->signer && t->signer->follow};
    while (started < SL_TRANSFER_AT_ONCE && started < n &&
           pthread_create(&threads[started], NULL, work, &m) == 0)
        started++;
    if (started == 0)
        work(&m);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&m.mutex);
    pthread_mutex_destroy(&m.watch_mutex);
    pthread_mutex_destroy(&m.sign_mutex);
    return m.rc;
}

#include "artifacts/crew.h"
#include "artifacts/web.h"
#include <pthread.h>

struct crew {
    const struct sl_watch *outer;
    const struct sl_signer *own;
    struct sl_signer signer; /* one request at a time: it may look its keys up anew */
    pthread_mutex_t mutex, watch_mutex, sign_mutex;
    size_t n, next;
    int (*work)(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err);
    void *arg;
    struct sl_err *err;
    int rc;
};

static void on_expect(void *arg, int64_t delta_bytes)
{
    struct crew *c = arg;
    pthread_mutex_lock(&c->watch_mutex);
    sl_watch_expect(c->outer, delta_bytes);
    pthread_mutex_unlock(&c->watch_mutex);
}

static void on_progress(void *arg, int64_t delta_bytes)
{
    struct crew *c = arg;
    pthread_mutex_lock(&c->watch_mutex);
    sl_watch_progress(c->outer, delta_bytes);
    pthread_mutex_unlock(&c->watch_mutex);
}

static bool on_stop(void *arg)
{
    struct crew *c = arg;
    pthread_mutex_lock(&c->mutex);
    bool failed = c->rc != 0;
    pthread_mutex_unlock(&c->mutex);
    pthread_mutex_lock(&c->watch_mutex);
    bool stop = failed || sl_watch_stop(c->outer);
    pthread_mutex_unlock(&c->watch_mutex);
    return stop;
}

static int on_sign(void *arg, const char *method, const char *url, const char *sha256,
                   struct curl_slist **headers, struct sl_err *err)
{
    struct crew *c = arg;
    pthread_mutex_lock(&c->sign_mutex);
    int rc = c->own->sign(c->own->arg, method, url, sha256, headers, err);
    pthread_mutex_unlock(&c->sign_mutex);
    return rc;
}

static void *hand_main(void *arg)
{
    struct crew *c = arg;
    struct sl_err err = SL_ERR_INIT;
    const struct sl_crew_hand hand = {.watch = {c, on_expect, on_progress, on_stop},
                                      .signer = c->own && c->own->sign ? &c->signer : c->own,
                                      .curl = sl_web_new(NULL)};
    for (;;) {
        pthread_mutex_lock(&c->mutex);
        size_t i = c->rc ? c->n : c->next++;
        pthread_mutex_unlock(&c->mutex);
        if (i >= c->n)
            break;
        int rc = c->work(c->arg, &hand, i, &err);
        if (rc == 0)
            continue;
        pthread_mutex_lock(&c->mutex);
        if (c->rc == 0) {
            c->rc = rc;
            sl_err_set(c->err, rc, "%s", err.msg);
        }
        pthread_mutex_unlock(&c->mutex);
    }
    curl_easy_cleanup(hand.curl);
    return NULL;
}

int sl_crew_run(const struct sl_watch *watch, const struct sl_signer *signer, size_t n, size_t hands,
                int (*work)(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err),
                void *arg, struct sl_err *err)
{
    struct crew c = {.outer = watch, .own = signer, .n = n, .work = work, .arg = arg, .err = err};
    pthread_t threads[SL_CREW_MAX];
    size_t started = 0;
    c.signer = (struct sl_signer){.arg = &c, .sign = on_sign, .follow = signer && signer->follow};
    pthread_mutex_init(&c.mutex, NULL);
    pthread_mutex_init(&c.watch_mutex, NULL);
    pthread_mutex_init(&c.sign_mutex, NULL);
    while (started < hands && started < SL_CREW_MAX && started < n &&
           pthread_create(&threads[started], NULL, hand_main, &c) == 0)
        started++;
    if (started == 0)
        hand_main(&c);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&c.mutex);
    pthread_mutex_destroy(&c.watch_mutex);
    pthread_mutex_destroy(&c.sign_mutex);
    return c.rc;
}

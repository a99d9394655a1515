#include "server/http_priv.h"
#include <errno.h>

#define HANDLER_STACK_BYTES (512u << 10)

void sl_http_pool_init(struct sl_http_pool *p, void (*run)(struct sl_http_req *req))
{
    p->run = run;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->cond, NULL);
}

void sl_http_pool_release(struct sl_http_pool *p)
{
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->cond);
}

static void *pool_main(void *arg)
{
    struct sl_http_pool *p = arg;

    pthread_mutex_lock(&p->mutex);
    for (;;) {
        struct sl_http_req *req;

        while (!p->head && !p->ending)
            pthread_cond_wait(&p->cond, &p->mutex);
        req = p->head;
        if (!req)
            break;
        p->head = req->next;
        pthread_mutex_unlock(&p->mutex);
        p->run(req);
        pthread_mutex_lock(&p->mutex);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

bool sl_http_pool_push(struct sl_http_pool *p, struct sl_http_req *req)
{
    bool ok;

    req->next = NULL;
    pthread_mutex_lock(&p->mutex);
    ok = !p->ending;
    if (ok) {
        MHD_suspend_connection(req->conn);
        if (p->head)
            p->tail->next = req;
        else
            p->head = req;
        p->tail = req;
        pthread_cond_signal(&p->cond);
    }
    pthread_mutex_unlock(&p->mutex);
    return ok;
}

int sl_http_pool_start(struct sl_http_pool *p, int n_threads, struct sl_err *err)
{
    pthread_attr_t attr;
    int failed = 0;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, HANDLER_STACK_BYTES);
    p->ending = false;
    for (; p->n_threads < n_threads && !failed; p->n_threads += !failed)
        failed = pthread_create(&p->threads[p->n_threads], &attr, pool_main, p);
    pthread_attr_destroy(&attr);
    errno = failed;
    return failed ? sl_err_errno(err, "starting a handler thread") : 0;
}

void sl_http_pool_stop(struct sl_http_pool *p)
{
    pthread_mutex_lock(&p->mutex);
    p->ending = true;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->mutex);
    for (; p->n_threads > 0; p->n_threads--)
        pthread_join(p->threads[p->n_threads - 1], NULL);
}

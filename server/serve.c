#include "server/serve.h"
#include "base/file.h"
#include "base/log.h"
#include "server/accounts.h"
#include "server/audit.h"
#include "server/copies.h"
#include "server/keeper.h"
#include "server/mlflow.h"
#include "server/openapi.h"
#include "server/portable.h"
#include "server/runs.h"
#include "server/sessions.h"
#include "server/webhooks.h"
#include <errno.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The server's parts, in the order they start. */
static const struct sl_server_part parts[] = {
    {"description", false, sl_openapi_part_start, sl_openapi_part_stop},
    {"auth", false, sl_auth_part_start, NULL},
    {"store", false, sl_store_part_start, NULL},
    {"registry", false, sl_registry_part_start, NULL},
    {"pages", false, sl_pages_part_start, sl_pages_part_stop},
    {"metrics", false, sl_metrics_part_start, sl_metrics_part_stop},
    {"webhooks", false, sl_webhooks_part_start, sl_webhooks_part_stop},
    {"mlflow", true, sl_mlflow_part_start, sl_mlflow_part_stop},
    {"copies", false, sl_copies_part_start, sl_copies_part_stop},
    {"runs", true, sl_runs_part_start, sl_runs_part_stop},
    {"mlflow's thread", true, sl_mlflow_send_start, sl_mlflow_send_stop},
    {"keeper", false, sl_keeper_start, sl_keeper_stop},
    {"portable", false, sl_portable_part_start, NULL},
};
#define N_PARTS ((int)(sizeof parts / sizeof *parts))

/* Says where we answer. */
static int announce(const struct sl_serve_config *config, int port, struct sl_err *err)
{
    char text[16];
    int n = snprintf(text, sizeof text, "%d\n", port);
    int host_len = (int)(strrchr(config->listen, ':') - config->listen);
    printf("serving http%s://%.*s:%d\n", config->tls_cert ? "s" : "", host_len, config->listen,
           port);
    fflush(stdout);
    return config->port_file ? sl_file_write(config->port_file, text, (size_t)n, err) : 0;
}

static int wait_for_stop(const sigset_t *signals)
{
    int signo;
    while (sigwait(signals, &signo))
        ;
    return signo;
}

int sl_serve(const struct sl_serve_config *config, struct sl_err *err)
{
    struct sl_server server = {.config = config};
    void *states[N_PARTS] = {NULL};
    bool started[N_PARTS] = {false};
    char *token = NULL;
    sigset_t signals;
    /* Before any thread is made, so that all of them leave these signals to us. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);

    int rc = sl_http_read_token(config->token_file, &token, err);
    if (rc == 0)
        rc = sl_store_open(config->data_dir, &server.store, err);
    if (rc == 0 && config->blobs)
        rc = sl_store_use_bucket(server.store, config->blobs, config->blobs_local_max, err);
    if (rc == 0) /* after the store: it has the folder's lock */
        rc = sl_accounts_open(config->data_dir, &server.accounts, err);
    if (rc == 0)
        rc = sl_sessions_open(config->data_dir, &server.sessions, err);
    if (rc == 0)
        rc = sl_audit_open(config->data_dir, &server.audit, err);
    if (rc == 0)
        rc = sl_http_new(&(struct sl_http_config){.listen = config->listen,
                                                  .unix_path = config->unix_path,
                                                  .token = token,
                                                  .accounts = server.accounts,
                                                  .sessions = server.sessions,
                                                  .audit = server.audit,
                                                  .sign_in_header = config->sign_in_header,
                                                  .trusted = config->trusted,
                                                  .tls_cert = config->tls_cert,
                                                  .tls_key = config->tls_key},
                         &server.http, err);
    if (token)
        OPENSSL_cleanse(token, strlen(token));
    free(token);
    for (int i = 0; rc == 0 && i < N_PARTS; i++) {
        if (parts[i].needs_redis && !config->redis_url)
            continue;
        rc = parts[i].start(&server, &states[i], err);
        started[i] = rc == 0;
        if (rc)
            sl_err_wrap(err, rc, "starting %s", parts[i].name);
    }
    if (rc == 0)
        rc = sl_http_start(server.http, err);
    if (rc == 0)
        rc = announce(config, sl_http_port(server.http), err);
    if (rc == 0) {
        sl_log(SL_INFO, NULL, "serving %s on %s, port %d", config->data_dir, config->listen,
               sl_http_port(server.http));
        int signo = wait_for_stop(&signals);
        sl_log(SL_INFO, NULL, "stopping: signal %d (%s)", signo, strsignal(signo));
    }
    sl_http_stop(server.http);
    for (int i = N_PARTS - 1; i >= 0; i--)
        if (started[i] && parts[i].stop)
            parts[i].stop(states[i]);
    sl_http_free(server.http);
    sl_audit_close(server.audit);
    sl_sessions_close(server.sessions);
    sl_accounts_close(server.accounts);
    sl_store_close(server.store);
    return rc;
}

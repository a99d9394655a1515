/* A store behind a real server in this process, and files beside it. A test's own routes: own_routes, set before. */
#ifndef SL_TESTS_UNIT_STORE_SERVER_H
#define SL_TESTS_UNIT_STORE_SERVER_H
#include "artifacts/api.h"
#include "artifacts/store.h"
#include "server/http.h"
#include "server/openapi.h"
#include "server/serve.h"
#include "tests/unit/files.h"
#include <stdlib.h>
#include <unistd.h>

#define TOKEN "a-token-that-is-long-enough"
#define EMPTY_SHA "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static char base_url[64];
static struct sl_server server;
static struct sl_api *api;
static const struct sl_route *own_routes;
static size_t n_own_routes;

static void *description;

static int setup(void **state)
{
    char path[SL_PATH_MAX];
    void *part;
    (void)state;
    sl_err_clear(&err);
    snprintf(dir, sizeof dir, "%s/sl-api-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir) || sl_path(path, &err, "%s/store", dir) ||
        sl_store_open(path, &server.store, &err) ||
        sl_http_new(&(struct sl_http_config){.listen = "127.0.0.1:0", .token = TOKEN}, &server.http, &err) ||
        sl_openapi_part_start(&server, &description, &err) ||
        sl_store_part_start(&server, &part, &err) ||
        (n_own_routes && sl_http_add(server.http, own_routes, n_own_routes, NULL, &err)) ||
        sl_http_start(server.http, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return -1;
    }
    snprintf(base_url, sizeof base_url, "http://127.0.0.1:%d", sl_http_port(server.http));
    return sl_api_new(base_url, TOKEN, &api, &err);
}

static int teardown(void **state)
{
    (void)state;
    sl_api_free(api);
    sl_http_free(server.http);
    sl_openapi_part_stop(description);
    sl_store_close(server.store);
    return sl_rmtree(dir, NULL);
}

#define WITH_SERVER(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif

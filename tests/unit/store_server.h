/* A store behind a real server in this process, and files beside it. A test's own routes: own_routes, set before. */
#ifndef SL_TESTS_UNIT_STORE_SERVER_H
#define SL_TESTS_UNIT_STORE_SERVER_H
#include "artifacts/api.h"
#include "artifacts/store.h"
#include "base/file.h"
#include "server/http.h"
#include "server/openapi.h"
#include "server/serve.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define TOKEN "a-token-that-is-long-enough"
#define EMPTY_SHA "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static char dir[64], base_url[64];
static struct sl_server server;
static struct sl_api *api;
static struct sl_err err;
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

static char *in_dir(const char *name)
{
    static char paths[4][SL_PATH_MAX];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, SL_PATH_MAX, "%s/%s", dir, name);
    return path;
}

static void put_file(const char *name, const char *text)
{
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s", in_dir(name));
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_int_equal(sl_mkdirs(path, &err), 0);
    *slash = '/';
    assert_int_equal(sl_file_write(path, text, strlen(text), &err), 0);
}

#define WITH_SERVER(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif

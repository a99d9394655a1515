/* The store over HTTP, by a real server in this process: tokens, bodies, ranges, plans of fetch and
 * push. Long because it is one suite over one server. */
#include "artifacts/pack.h"
#include "artifacts/api.h"
#include "artifacts/plan.h"
#include "artifacts/store.h"
#include "artifacts/transfer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "server/http.h"
#include "server/openapi.h"
#include "server/serve.h"
#include "tests/unit/http_script.h"
#include <dirent.h>
#include <netdb.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define TOKEN "a-token-that-is-long-enough"
#define EMPTY_SHA "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static char dir[64], base_url[64];
static struct sl_server server;
static struct sl_api *api;
static struct sl_err err;
static atomic_int in_handler;

/* Routes of this test: a slow handler, one that waits, one that forgets to answer. */
static void slow_handler(struct sl_http_req *req, void *arg)
{
    (void)arg;
    atomic_fetch_add(&in_handler, 1);
    for (int i = 0; i < 50 && !sl_http_stopping(req); i++)
        usleep(10000);
    sl_http_reply_json(req, 200, json_pack("{s:b}", "stopping", sl_http_stopping(req)));
}

static void silent_handler(struct sl_http_req *req, void *arg)
{
    (void)req;
    (void)arg;
}

static void echo_handler(struct sl_http_req *req, void *arg)
{
    (void)arg;
    const char *q = sl_http_query(req, "q");
    sl_http_reply_json(req, 200,
                       json_pack("{s:s, s:s, s:s, s:O, s:I}", "method", sl_http_method(req), "a",
                                 sl_http_param(req, "a"), "q", q ? q : "", "body",
                                 sl_http_json(req), "n",
                                 (json_int_t)sl_http_query_int(req, "n", 7, 1, 10)));
}

static const struct sl_route test_routes[] = {
    {.method = "GET", .pattern = "/api/v1/slow", .handle = slow_handler, .waits = true},
    {.method = "GET", .pattern = "/api/v1/silent", .handle = silent_handler},
    {.method = "POST", .pattern = "/api/v1/echo/{a}", .body = SL_BODY_JSON, .handle = echo_handler},
};

static void *description;

static int setup(void **state)
{
    char path[SL_PATH_MAX];
    void *part;
    (void)state;
    sl_err_clear(&err);
    atomic_store(&in_handler, 0);
    snprintf(dir, sizeof dir, "%s/sl-api-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir) || sl_path(path, &err, "%s/store", dir) ||
        sl_store_open(path, &server.store, &err) ||
        sl_http_new(&(struct sl_http_config){.listen = "127.0.0.1:0", .token = TOKEN}, &server.http, &err) ||
        sl_openapi_part_start(&server, &description, &err) ||
        sl_store_part_start(&server, &part, &err) ||
        sl_http_add(server.http, test_routes, sizeof test_routes / sizeof *test_routes, NULL,
                    &err) ||
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

static void assert_content(const char *name, const char *text)
{
    struct sl_buf buf;
    sl_buf_init(&buf, 1 << 20);
    if (sl_file_read(in_dir(name), &buf, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(buf.p, text);
    sl_buf_release(&buf);
}

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)sl_http_port(server.http))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* Sends raw bytes, with the right token where they say %TOKEN; gives the status, 0: none. answer
 * may be NULL. cut: the client leaves when they are out. */
static int raw_request(const char *request, bool cut, char *answer, size_t size)
{
    char text[8192], own[4096], line[] = "Connection: close\r\nAuthorization: Bearer " TOKEN "\r\n";
    const char *mark = strstr(request, "%TOKEN");
    size_t len = 0;
    if (mark)
        snprintf(text, sizeof text, "%.*s%s%s", (int)(mark - request), request, line, mark + 6);
    else
        snprintf(text, sizeof text, "%s", request);
    int fd = dial(), status = 0;
    send(fd, text, strlen(text), MSG_NOSIGNAL);
    if (cut) { /* a little later: data and end in one event are told apart by the idle timeout only
                */
        usleep(50000);
        shutdown(fd, SHUT_WR);
    }
    if (!answer) {
        answer = own;
        size = sizeof own;
    }
    for (ssize_t n; len + 1 < size && (n = recv(fd, answer + len, size - 1 - len, 0)) > 0;)
        len += (size_t)n;
    answer[len] = 0;
    close(fd);
    sscanf(answer, "HTTP/1.1 %d", &status);
    return status;
}

static int raw(const char *request, char *answer, size_t size)
{
    return raw_request(request, false, answer, size);
}

#define GET(path, headers)                                                                         \
    "GET " path " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" headers "\r\n"

/* ---- who may ask ----------------------------------------------------------------------------- */

static void only_health_answers_without_token(void **state)
{
    char answer[2048];
    (void)state;
    assert_int_equal(raw(GET("/api/v1/health", ""), answer, sizeof answer), 200);
    assert_non_null(strstr(answer, "\"status\":\"ok\""));
    assert_int_equal(raw(GET("/api/v1/artifacts", ""), answer, sizeof answer), 401);
    assert_non_null(strstr(answer, "application/problem+json"));
    assert_non_null(strstr(answer, "WWW-Authenticate: Bearer"));
    assert_int_equal(raw(GET("/nothing/here", ""), NULL, 0), 401); /* nor does what exists */
    assert_int_equal(raw(GET("/api/v1/artifacts", "Authorization: Bearer wrong\r\n"), NULL, 0),
                     401);
    assert_int_equal(raw(GET("/api/v1/artifacts", "Authorization: Bearer " TOKEN "x\r\n"), NULL, 0),
                     401);
    assert_int_equal(raw(GET("/api/v1/artifacts", "Authorization: Bearer \r\n"), NULL, 0), 401);
    assert_int_equal(raw(GET("/api/v1/artifacts", "Authorization: Basic " TOKEN "\r\n"), NULL, 0),
                     401);
    assert_int_equal(raw("PUT /api/v1/blobs/" EMPTY_SHA
                         " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                         NULL, 0),
                     401);
    assert_int_equal(sl_blob_stat(server.store, EMPTY_SHA, NULL, NULL), SL_NOTFOUND);
    assert_int_equal(raw(GET("/api/v1/artifacts", "%TOKEN"), NULL, 0), 200);
    assert_int_equal(raw(GET("/nothing/here", "%TOKEN"), NULL, 0), 404);
    assert_int_equal(raw(GET("/api/v1/blobs/..%2f..%2flock", "%TOKEN"), NULL, 0), 404);
    assert_int_equal(raw(GET("/api/v1/blobs/abc", "%TOKEN"), NULL, 0), 422);
    assert_int_equal(
        raw("DELETE /api/v1/artifacts HTTP/1.1\r\nHost: x\r\n%TOKEN\r\n", answer, sizeof answer),
        405);
    assert_non_null(strstr(answer, "Allow: GET"));
}

static void short_tokens_are_refused(void **state)
{
    struct sl_http *http;
    char *token;
    (void)state;
    assert_int_equal(sl_http_new(&(struct sl_http_config){.listen = "127.0.0.1:0", .token = ""}, &http, NULL),
                     SL_SPEC);
    assert_int_equal(sl_http_new(&(struct sl_http_config){.listen = "127.0.0.1:0", .token = NULL}, &http, NULL),
                     SL_SPEC);
    put_file("tok", "short\n");
    assert_int_equal(sl_http_read_token(in_dir("tok"), &token, &err), SL_SPEC);
    put_file("tok", "  " TOKEN " \n");
    assert_int_equal(sl_http_read_token(in_dir("tok"), &token, &err), 0);
    assert_string_equal(token, TOKEN);
    free(token);
    put_file("tok", TOKEN "\nsecond line\n");
    assert_int_equal(sl_http_read_token(in_dir("tok"), &token, NULL), SL_SPEC);
}

/* ---- bodies ---------------------------------------------------------------------------------- */

static void json_bodies(void **state)
{
    json_t *body = json_pack("{s:s}", "k", "v"), *reply;
    long status;
    (void)state;
    assert_int_equal(sl_api_request(api, "POST", "/api/v1/echo/x%20y?q=a%26b&n=99", NULL, body,
                                    &reply, &status, &err),
                     0);
    assert_int_equal(status, 200);
    assert_string_equal(sl_json_str(reply, "a", ""), "x y");
    assert_string_equal(sl_json_str(reply, "q", ""), "a&b");
    assert_string_equal(sl_json_str(reply, "body.k", ""), "v");
    assert_int_equal(sl_json_int(reply, "n", 0), 10);
    json_decref(reply);
    json_decref(body);
    assert_int_equal(
        raw("POST /api/v1/echo/x HTTP/1.1\r\nHost: x\r\n%TOKENContent-Length: 3\r\n\r\n{]}", NULL,
            0),
        422);
    assert_int_equal(
        raw("POST /api/v1/echo/x HTTP/1.1\r\nHost: x\r\n%TOKENContent-Length: 0\r\n\r\n", NULL, 0),
        422);
    assert_int_equal(
        raw("POST /api/v1/echo/x HTTP/1.1\r\nHost: x\r\n%TOKENContent-Length: 99999999\r\n"
            "\r\n{",
            NULL, 0),
        413);
    assert_int_equal(
        raw("GET /api/v1/artifacts HTTP/1.1\r\nHost: x\r\n%TOKENContent-Length: 3\r\n\r\nabc", NULL,
            0),
        400);
    /* chunked, and without an end to it: the limit holds all the same */
    int fd = dial();
    const char *head = "POST /api/v1/echo/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " TOKEN
                       "\r\nTransfer-Encoding: chunked\r\n\r\n";
    static char chunk[66000] = "10000\r\n";
    memset(chunk + 7, '1', 65536);
    memcpy(chunk + 7 + 65536, "\r\n", 2);
    send(fd, head, strlen(head), MSG_NOSIGNAL);
    for (int i = 0; i < 20; i++)
        send(fd, chunk, 7 + 65536 + 2, MSG_NOSIGNAL);
    send(fd, "0\r\n\r\n", 5, MSG_NOSIGNAL);
    char answer[512] = "";
    recv(fd, answer, sizeof answer - 1, 0);
    close(fd);
    assert_non_null(strstr(answer, "HTTP/1.1 422"));
    /* and the server is as well as before */
    assert_int_equal(raw(GET("/api/v1/silent", "%TOKEN"), answer, sizeof answer), 500);
    assert_int_equal(raw(GET("/api/v1/health", ""), NULL, 0), 200);
}

static void huge_headers_are_refused(void **state)
{
    int fd = dial();
    char line[1024], answer[256] = "";
    (void)state;
    memset(line, 'a', sizeof line);
    memcpy(line, "X-A: ", 5);
    memcpy(line + sizeof line - 2, "\r\n", 2);
    const char *head = "GET /api/v1/health HTTP/1.1\r\nHost: x\r\n";
    send(fd, head, strlen(head), MSG_NOSIGNAL);
    for (int i = 0; i < 80; i++)
        send(fd, line, sizeof line, MSG_NOSIGNAL);
    send(fd, "\r\n", 2, MSG_NOSIGNAL);
    recv(fd, answer, sizeof answer - 1, 0);
    close(fd);
    assert_null(strstr(answer, " 200 "));
    assert_int_equal(raw(GET("/api/v1/health", ""), NULL, 0), 200);
}

static int count_tmp(void)
{
    int n = 0;
    DIR *d = opendir(in_dir("store/tmp"));
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void cut_and_wrong_uploads_leave_nothing(void **state)
{
    char sha[65], request[512], answer[1024];
    (void)state;
    assert_int_equal(sl_sha256_data("hello", 5, sha, NULL), 0);
    snprintf(request, sizeof request,
             "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 500\r\n\r\nhello",
             sha);
    assert_int_equal(raw_request(request, true, NULL, 0), 0); /* cut in the middle */
    for (int i = 0; i < 100 && count_tmp() > 0; i++)
        usleep(10000);
    assert_int_equal(count_tmp(), 0);
    assert_int_equal(sl_blob_stat(server.store, sha, NULL, NULL), SL_NOTFOUND);
    snprintf(request, sizeof request,
             "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 5\r\n\r\nHELLO",
             sha);
    assert_int_equal(raw(request, answer, sizeof answer), 422);
    assert_non_null(strstr(answer, sha));
    assert_non_null(strstr(answer, "wrong sha256"));
    assert_int_equal(count_tmp(), 0);
    snprintf(request, sizeof request,
             "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 5\r\n\r\nhello",
             sha);
    assert_int_equal(raw(request, NULL, 0), 201);
    assert_int_equal(raw(request, NULL, 0), 200);
    assert_int_equal(sl_blob_stat(server.store, sha, NULL, NULL), 0);
    snprintf(
        request, sizeof request,
        "PUT /api/v1/blobs/%.63sX HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 5\r\n\r\nhello",
        sha);
    assert_int_equal(raw(request, NULL, 0), 422);
}

static void ranges_and_tags(void **state)
{
    static const struct {
        const char *header, *status, *range, *body;
    } cases[] = {
        {"", "200", NULL, "\r\n\r\n0123456789"},
        {"Range: bytes=2-4\r\n", "206", "bytes 2-4/10", "\r\n\r\n234"},
        {"Range: bytes=7-\r\n", "206", "bytes 7-9/10", "\r\n\r\n789"},
        {"Range: bytes=-3\r\n", "206", "bytes 7-9/10", "\r\n\r\n789"},
        {"Range: bytes=-99\r\n", "206", "bytes 0-9/10", "\r\n\r\n0123456789"},
        {"Range: bytes=5-99\r\n", "206", "bytes 5-9/10", "\r\n\r\n56789"},
        {"Range: bytes=10-\r\n", "416", "bytes */10", NULL},
        {"Range: bytes=-0\r\n", "416", "bytes */10", NULL},
        {"Range: bytes=4-2\r\n", "200", NULL, "\r\n\r\n0123456789"},
        {"Range: bytes=1-2,4-5\r\n", "200", NULL, "\r\n\r\n0123456789"},
        {"Range: lines=1-2\r\n", "200", NULL, "\r\n\r\n0123456789"},
        {"Range: bytes=2-4\r\nIf-Range: \"other\"\r\n", "200", NULL, "\r\n\r\n0123456789"},
    };
    char sha[65], request[512], answer[2048], etag[80];
    (void)state;
    assert_int_equal(sl_blob_put(server.store, "0123456789", 10, sha, NULL), 0);
    snprintf(etag, sizeof etag, "ETag: \"%s\"", sha);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(request, sizeof request,
                 "GET /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKEN%s\r\n", sha, cases[i].header);
        raw(request, answer, sizeof answer);
        if (strncmp(answer + 9, cases[i].status, 3) != 0 ||
            (cases[i].range && !strstr(answer, cases[i].range)) ||
            (cases[i].body && !strstr(answer, cases[i].body)) || !strstr(answer, etag))
            fail_msg("%s gave %s", cases[i].header, answer);
        if (cases[i].body)
            assert_string_equal(strstr(answer, "\r\n\r\n"), cases[i].body);
    }
    snprintf(request, sizeof request, "HEAD /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKEN\r\n",
             sha);
    assert_int_equal(raw(request, answer, sizeof answer), 200);
    assert_non_null(strstr(answer, "Content-Length: 10"));
    assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    snprintf(request, sizeof request,
             "GET /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENIf-None-Match: \"%s\"\r\n\r\n",
             sha, sha);
    assert_int_equal(raw(request, NULL, 0), 304);
    snprintf(request, sizeof request,
             "HEAD /api/v1/blobs/" EMPTY_SHA " HTTP/1.1\r\nHost: x\r\n%%TOKEN\r\n");
    assert_int_equal(raw(request, NULL, 0), 404);
    assert_int_equal(sl_blob_put(server.store, "", 0, sha, NULL), 0);
    request[0] = 'G', request[1] = 'E', request[2] = 'T', request[3] = ' ';
    snprintf(request, sizeof request,
             "GET /api/v1/blobs/" EMPTY_SHA " HTTP/1.1\r\nHost: x\r\n%%TOKEN\r\n");
    assert_int_equal(raw(request, NULL, 0), 200);
}

/* ---- versions -------------------------------------------------------------------------------- */

static void a_version_needs_its_blobs(void **state)
{
    char text[300], sha[65], blob[65];
    json_t *body, *reply;
    (void)state;
    snprintf(text, sizeof text, "{\"files\":[{\"bytes\":5,\"path\":\"a\",\"sha256\":\"%s\"}]}",
             EMPTY_SHA);
    assert_int_equal(sl_blob_put(server.store, text, strlen(text), sha, NULL), 0);
    body = json_pack("{s:s, s:[s]}", "manifest", sha, "aliases", "candidate");
    assert_int_equal(
        sl_api_call(api, "POST", "/api/v1/artifacts/m/versions", NULL, body, &reply, &err),
        SL_SPEC);
    assert_non_null(strstr(err.msg, "/files/0"));
    assert_non_null(strstr(err.msg, EMPTY_SHA));
    json_decref(body);
    assert_int_equal(sl_blob_put(server.store, "hello", 5, blob, NULL), 0);
    snprintf(text, sizeof text, "{\"files\":[{\"bytes\":5,\"path\":\"a\",\"sha256\":\"%s\"}]}",
             blob);
    assert_int_equal(sl_blob_put(server.store, text, strlen(text), sha, NULL), 0);
    body = json_pack("{s:s}", "manifest", blob);
    sl_err_clear(&err);
    assert_int_equal(
        sl_api_call(api, "POST", "/api/v1/artifacts/m/versions", NULL, body, &reply, &err),
        SL_SPEC);
    assert_non_null(strstr(err.msg, "is not a manifest"));
    json_decref(body);
    body = json_pack("{s:s, s:[s], s:i, s:i}", "manifest", sha, "aliases", "candidate", "alias", 1,
                     "x", 2);
    sl_err_clear(&err);
    assert_int_equal(
        sl_api_call(api, "POST", "/api/v1/artifacts/m/versions", NULL, body, &reply, &err),
        SL_SPEC);
    assert_non_null(strstr(err.msg, "alias: unknown key")); /* every mistake at once */
    assert_non_null(strstr(err.msg, "x: unknown key"));
    json_object_del(body, "alias");
    json_object_del(body, "x");
    sl_err_clear(&err);
    assert_int_equal(
        sl_api_call(api, "POST", "/api/v1/artifacts/m/versions", NULL, body, &reply, &err), 0);
    assert_string_equal(sl_json_str(reply, "version", ""), "v0");
    json_decref(reply);
    assert_int_equal(
        sl_api_call(api, "POST", "/api/v1/artifacts/M/versions", NULL, body, &reply, NULL),
        SL_SPEC);
    json_decref(body);
    assert_int_equal(
        sl_api_call(api, "GET", "/api/v1/artifacts/m/candidate", NULL, NULL, &reply, &err), 0);
    assert_string_equal(sl_json_str(json_array_get(json_object_get(reply, "files"), 0), "path", ""),
                        "a");
    json_decref(reply);
    assert_int_equal(sl_api_call(api, "GET", "/api/v1/artifacts/m/v7", NULL, NULL, &reply, NULL),
                     SL_NOTFOUND);
    body = json_pack("{s:s}", "version", "v0");
    assert_int_equal(
        sl_api_call(api, "PUT", "/api/v1/artifacts/m/aliases/prod", NULL, body, &reply, &err), 0);
    json_decref(reply);
    assert_int_equal(
        sl_api_call(api, "PUT", "/api/v1/artifacts/m/aliases/latest", NULL, body, &reply, NULL),
        SL_SPEC);
    json_decref(body);
}

/* ---- several clients ------------------------------------------------------------------------- */

static void two_putters_of_one_blob(void **state)
{
    pid_t pids[2];
    char sha[65];
    static char big[6 << 20];
    (void)state;
    memset(big, 'x', sizeof big);
    FILE *f = fopen(in_dir("big"), "w");
    assert_int_equal(fwrite(big, 1, sizeof big, f), sizeof big);
    fclose(f);
    assert_int_equal(sl_sha256_data(big, sizeof big, sha, NULL), 0);
    for (int i = 0; i < 2; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            const struct sl_transfer t = {.server = base_url, .token = TOKEN};
            _exit(sl_transfer_put(&t, "big", in_dir("big"), sha, NULL) ? 1 : 0);
        }
    }
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    int64_t bytes;
    assert_int_equal(sl_blob_stat(server.store, sha, &bytes, &err), 0);
    assert_int_equal(bytes, sizeof big);
    assert_int_equal(count_tmp(), 0);
    const struct sl_transfer t = {.server = base_url, .token = "some-other-token-of-length"};
    assert_int_equal(sl_transfer_put(&t, "big", in_dir("big"), sha, NULL), SL_DENIED);
    const struct sl_transfer ok = {.server = base_url, .token = TOKEN};
    assert_int_equal(sl_transfer_put(&ok, "big", in_dir("big"), EMPTY_SHA, NULL), SL_DATA);
}

static void *ask_slow(void *arg)
{
    struct sl_api *own;
    json_t *reply = NULL;
    long *status = arg;
    if (sl_api_new(base_url, TOKEN, &own, NULL) == 0 &&
        sl_api_request(own, "GET", "/api/v1/slow", NULL, NULL, &reply, status, NULL))
        *status = -1;
    if (*status == 200 && !sl_json_bool(reply, "stopping", false))
        *status = 1;
    json_decref(reply);
    sl_api_free(own);
    return NULL;
}

/* Waiting requests hold up no short one, and are answered when the server stops. */
static void waiting_requests_and_a_graceful_stop(void **state)
{
    pthread_t threads[12];
    long status[12] = {0};
    (void)state;
    for (int i = 0; i < 12; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_slow, &status[i]), 0);
    while (atomic_load(&in_handler) < 12)
        usleep(1000);
    int64_t begin = sl_boot_us();
    for (int i = 0; i < 20; i++)
        assert_int_equal(raw(GET("/api/v1/artifacts", "%TOKEN"), NULL, 0), 200);
    assert_true(sl_boot_us() - begin < 300000);
    begin = sl_boot_us();
    sl_http_stop(server.http);
    assert_true(sl_boot_us() - begin < 2000000);
    for (int i = 0; i < 12; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(status[i], 200);
    }
}

/* ---- plans ----------------------------------------------------------------------------------- */

static int publish(const char *name, const char *folder)
{
    /* By hand what `artifact put` does: blobs, manifest, version. */
    struct dirent **list;
    json_t *files = json_array(), *record;
    char sha[65];
    int n = scandir(in_dir(folder), &list, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char path[300];
        struct sl_buf buf;
        snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name);
        sl_buf_init(&buf, 1 << 20);
        if (list[i]->d_name[0] != '.') {
            assert_int_equal(sl_file_read(in_dir(path), &buf, &err), 0);
            assert_int_equal(sl_blob_put(server.store, buf.p, buf.len, sha, &err), 0);
            json_array_append_new(files, json_pack("{s:s, s:s, s:i}", "path", list[i]->d_name,
                                                   "sha256", sha, "bytes", (int)buf.len));
        }
        sl_buf_release(&buf);
        free(list[i]);
    }
    free(list);
    json_t *manifest = json_pack("{s:o}", "files", files);
    char *text = sl_json_dump(manifest);
    assert_int_equal(sl_blob_put(server.store, text, strlen(text), sha, &err), 0);
    free(text);
    json_decref(manifest);
    struct sl_commit c = {.name = name, .manifest = sha, .number = -1};
    assert_int_equal(sl_store_commit(server.store, &c, &record, NULL, &err), 0);
    int number = (int)sl_json_int(record, "number", -1);
    json_decref(record);
    return number;
}

static int fetch(json_t *items_stolen, json_t **ret_resolved)
{
    const struct sl_watch watch = {NULL, NULL, NULL, NULL};
    json_t *plan = json_pack("{s:s, s:s, s:[s], s:s, s:o}", "server", base_url, "cache",
                             in_dir("cache"), "allow_paths", in_dir("allowed"), "run_dir",
                             in_dir("run"), "items", items_stolen);
    sl_err_clear(&err);
    int rc = sl_plan_fetch(plan, TOKEN, &watch, ret_resolved, &err);
    json_decref(plan);
    return rc;
}

static void fetch_plans(void **state)
{
    json_t *resolved;
    char link[SL_PATH_MAX];
    (void)state;
    put_file("one/model.gguf", "the model");
    put_file("two/train.jsonl", "{\"a\":1}");
    put_file("two/test.jsonl", "{\"b\":2}");
    put_file("allowed/mine.txt", "local");
    put_file("secret/mine.txt", "secret");
    assert_int_equal(symlink("../secret/mine.txt", in_dir("allowed/sneaky")), 0);
    assert_int_equal(publish("model", "one"), 0);
    assert_int_equal(publish("data", "two"), 0);
    snprintf(link, sizeof link, "file://%s", in_dir("allowed/mine.txt"));
    for (int round = 0; round < 2; round++) { /* the second replaces what the first has placed */
        json_t *items = json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}, {s:s, s:s}]", "ref",
                                  "model:latest", "dest", "inputs/model", "ref", "data", "dest",
                                  "inputs/data", "ref", "data:v0/train.jsonl", "dest",
                                  "inputs/train-0.jsonl", "ref", link, "dest", "inputs/local");
        if (fetch(items, &resolved))
            fail_msg("%s", err.msg);
        assert_content("run/inputs/model", "the model");
        assert_content("run/inputs/data/train.jsonl", "{\"a\":1}");
        assert_content("run/inputs/data/test.jsonl", "{\"b\":2}");
        assert_content("run/inputs/train-0.jsonl", "{\"a\":1}");
        assert_content("run/inputs/local", "local");
        assert_int_equal(json_array_size(resolved), 4);
        assert_string_equal(sl_json_str(json_array_get(resolved, 0), "version", ""), "v0");
        assert_int_equal(sl_json_int(json_array_get(resolved, 0), "bytes", 0), 9);
        assert_int_equal(strlen(sl_json_str(json_array_get(resolved, 3), "sha256", "")), 64);
        json_decref(resolved);
    }
    static const struct {
        const char *ref;
        int code;
        const char *says;
    } bad[] = {
        {"nope", SL_NOTFOUND, "there is no artifact nope"},
        {"model:v9", SL_NOTFOUND, "no version v9"},
        {"data/none.txt", SL_NOTFOUND, "none.txt"},
        {"Model", SL_SPEC, "not an artifact reference"},
        {"ftp://x/y", SL_SPEC, "only http, https, s3"},
        {"/etc/passwd", SL_DENIED, "--allow-path"},
        {"/no/such/file", SL_DENIED, "--allow-path"},
        {"file://host", SL_SPEC, "three slashes"},
        {"http://127.0.0.1:1/x", SL_RETRY, "127.0.0.1:1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fetch(json_pack("[{s:s, s:s}]", "ref", bad[i].ref, "dest", "inputs/x"), &resolved) !=
                bad[i].code ||
            !strstr(err.msg, bad[i].says))
            fail_msg("%s: code %d: %s", bad[i].ref, err.code, err.msg);
        assert_false(sl_file_exists(in_dir("run/inputs/x")));
    }
    snprintf(link, sizeof link, "%s/../secret/mine.txt", in_dir("allowed"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_DENIED);
    snprintf(link, sizeof link, "%s", in_dir("allowed/sneaky"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_DENIED);
    snprintf(link, sizeof link, "%s", in_dir("allowed/gone"));
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", link, "dest", "x"), &resolved),
                     SL_NOTFOUND);
    assert_int_equal(fetch(json_pack("[{s:s, s:s}]", "ref", "model", "dest", "../x"), &resolved),
                     SL_SPEC);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:s}]", "ref", "model", "dest", "x", "sha256", EMPTY_SHA),
              &resolved),
        SL_DATA);
    assert_non_null(strstr(err.msg, EMPTY_SHA));
}

static int push(json_t *plan_stolen, json_t **ret_result)
{
    const struct sl_watch watch = {NULL, NULL, NULL, NULL};
    sl_err_clear(&err);
    int rc = sl_plan_push(plan_stolen, TOKEN, &watch, ret_result, &err);
    json_decref(plan_stolen);
    return rc;
}

static json_t *push_plan(const char *url, const char *publish_key)
{
    json_t *plan =
        json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:s, s:s, s:s, s:[s]}]}", "server", url, "run",
                  "r1", "lease", "l1", "run_dir", in_dir("run"), "items", "output", "prompts",
                  "tar", "prompts.tar.zst", "dir", "out", "artifact", "p", "aliases", "candidate");
    if (publish_key)
        json_object_set_new(plan, "publish", json_pack("{s:{s:i}}", publish_key, "loss", 1));
    return plan;
}

static void what_is_pushed_comes_back(void **state)
{
    json_t *result, *resolved;
    char manifest[65], again[65];
    (void)state;
    put_file("run/out/prompt_table.safetensors", "table");
    put_file("run/out/peft/task/adapter_config.json", "{}");
    if (push(push_plan(base_url, NULL), &result))
        fail_msg("%s", err.msg);
    const json_t *first = json_array_get(json_object_get(result, "manifests"), 0);
    assert_string_equal(sl_json_str(first, "output", ""), "prompts");
    snprintf(manifest, sizeof manifest, "%s", sl_json_str(first, "sha256", ""));
    json_decref(result);
    assert_false(
        sl_file_exists(in_dir("run/prompts.tar.zst"))); /* nothing is left beside the output */
    assert_int_equal(push(push_plan(base_url, NULL), &result), 0);
    first = json_array_get(json_object_get(result, "manifests"), 0);
    snprintf(again, sizeof again, "%s", sl_json_str(first, "sha256", ""));
    json_decref(result);
    assert_string_equal(manifest, again);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "manifest", manifest, "dest", "back", "unpack", 1),
              &resolved),
        0);
    assert_content("run/back/prompt_table.safetensors", "table");
    assert_content("run/back/peft/task/adapter_config.json", "{}");
    json_decref(resolved);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "blob", EMPTY_SHA, "dest", "x", "unpack", 1),
              &resolved),
        SL_NOTFOUND);
    assert_int_equal(
        fetch(json_pack("[{s:s, s:s, s:b}]", "blob", manifest, "dest", "x", "unpack", 1),
              &resolved),
        SL_DATA); /* not a tarball */
    assert_false(sl_file_exists(in_dir("run/x")));
    assert_int_equal(sl_rmtree(in_dir("run/out"), NULL), 0);
    assert_int_not_equal(push(push_plan(base_url, NULL), &result), 0);
    assert_non_null(strstr(err.msg, "out"));
}

/* A server in front of the real one's blobs, that answers publishing as a run's part would. */
static void publish_script(struct script *s, int n, const struct request *r, int fd)
{
    char head[256];
    const char *text = s->other;
    (void)n;
    if (strncmp(r->text, "HEAD", 4) == 0) {
        script_status(fd, "200 There");
        return;
    }
    if (strncmp(text, "503", 3) == 0 && n > 4) /* lost once, then taken */
        text = "200 {\"outputs\":[]}";
    snprintf(head, sizeof head,
             "HTTP/1.1 %.3s X\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", text,
             strlen(text + 4));
    script_send(fd, head, text + 4, strlen(text + 4));
}

static void publishing_says_what_the_server_says(void **state)
{
    static const struct {
        const char *answer;
        int code;
    } cases[] = {
        {"200 {\"outputs\":[]}", 0},
        {"503 {}", 0},
        {"409 {\"title\":\"lease lost\",\"detail\":\"another agent has it\"}", SL_LEASE},
        {"409 {\"title\":\"cancelled\",\"detail\":\"the run was cancelled\"}", SL_CANCELLED},
        {"422 {\"title\":\"not valid\",\"detail\":\"no\"}", SL_SPEC},
    };
    (void)state;
    put_file("run/out/a", "a");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct script s = {.answer = publish_script, .other = cases[i].answer};
        char own[64];
        json_t *result = NULL;
        assert_int_equal(script_start(&s), 0);
        snprintf(own, sizeof own, "http://127.0.0.1:%d", s.port);
        int rc = push(push_plan(own, "metrics"), &result);
        script_stop(&s);
        if (rc != cases[i].code)
            fail_msg("%s gave %d: %s", cases[i].answer, rc, err.msg);
        const char *text = s.requests[atomic_load(&s.n) - 1].text;
        assert_non_null(strstr(text, "POST /api/v1/runs/r1/publish"));
        assert_non_null(strstr(text, "Idempotency-Key: l1"));
        json_decref(result);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    sl_unpack_main(argc, argv);
    const struct CMUnitTest tests[] = {
        T(only_health_answers_without_token),
        T(short_tokens_are_refused),
        T(json_bodies),
        T(huge_headers_are_refused),
        T(cut_and_wrong_uploads_leave_nothing),
        T(ranges_and_tags),
        T(a_version_needs_its_blobs),
        T(two_putters_of_one_blob),
        T(waiting_requests_and_a_graceful_stop),
        T(fetch_plans),
        T(what_is_pushed_comes_back),
        T(publishing_says_what_the_server_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

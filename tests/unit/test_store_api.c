/* The store over HTTP: tokens, bodies, ranges, versions, several clients. */
#include "artifacts/pack.h"
#include "artifacts/transfer.h"
#include "base/clock.h"
#include "base/json.h"
#include "tests/unit/store_server.h"
#include <netdb.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>

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

static void cut_and_wrong_uploads_leave_nothing(void **state)
{
    char sha[65], request[512], answer[1024];
    (void)state;
    assert_int_equal(sl_sha256_data("hello", 5, sha, NULL), 0);
    snprintf(request, sizeof request,
             "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 500\r\n\r\nhello",
             sha);
    assert_int_equal(raw_request(request, true, NULL, 0), 0); /* cut in the middle */
    for (int i = 0; i < 100 && files_at(in_dir("store/tmp")) > 0; i++)
        usleep(10000);
    assert_int_equal(files_at(in_dir("store/tmp")), 0);
    assert_int_equal(sl_blob_stat(server.store, sha, NULL, NULL), SL_NOTFOUND);
    snprintf(request, sizeof request,
             "PUT /api/v1/blobs/%s HTTP/1.1\r\nHost: x\r\n%%TOKENContent-Length: 5\r\n\r\nHELLO",
             sha);
    assert_int_equal(raw(request, answer, sizeof answer), 422);
    assert_non_null(strstr(answer, sha));
    assert_non_null(strstr(answer, "wrong sha256"));
    assert_int_equal(files_at(in_dir("store/tmp")), 0);
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
    assert_int_equal(files_at(in_dir("store/tmp")), 0);
    const struct sl_transfer t = {.server = base_url, .token = "some-other-token-of-length"};
    assert_int_equal(sl_transfer_put(&t, "big", in_dir("big"), sha, NULL), SL_DENIED);
    const struct sl_transfer ok = {.server = base_url, .token = TOKEN};
    assert_int_equal(sl_transfer_put(&ok, "big", in_dir("big"), EMPTY_SHA, &err), SL_DATA);
    assert_string_equal(err.msg, "big changed while it was sent: put it again when nothing writes to it");
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

int main(int argc, char **argv)
{
    sl_unpack_main(argc, argv);
    own_routes = test_routes;
    n_own_routes = sizeof test_routes / sizeof *test_routes;
    const struct CMUnitTest tests[] = {
        WITH_SERVER(only_health_answers_without_token),
        WITH_SERVER(short_tokens_are_refused),
        WITH_SERVER(json_bodies),
        WITH_SERVER(huge_headers_are_refused),
        WITH_SERVER(cut_and_wrong_uploads_leave_nothing),
        WITH_SERVER(ranges_and_tags),
        WITH_SERVER(a_version_needs_its_blobs),
        WITH_SERVER(two_putters_of_one_blob),
        WITH_SERVER(waiting_requests_and_a_graceful_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Transfers against servers that cut, fail, lie and redirect; the cache under several processes. */
#include "artifacts/cache.h"
#include "artifacts/transfer.h"
#include "base/clock.h"
#include "tests/unit/files.h"
#include "tests/unit/http_script.h"
#include <sys/stat.h>
#include <sys/wait.h>

#define BODY_BYTES (1u << 20)
#define TOKEN "a-token-that-is-long-enough"

static char body[BODY_BYTES], body_sha[65], url[128];
static struct sl_cache cache;
static struct script server;
static struct sl_got got;

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/sl-transfer-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    unsigned x = 1;
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = (char)((x = x * 1664525 + 1013904223) >> 24);
    sl_err_clear(&err);
    memset(&server, 0, sizeof server);
    memset(&got, 0, sizeof got);
    server.body = body;
    server.len = sizeof body;
    char path[SL_PATH_MAX];
    if (!mkdtemp(dir) || sl_sha256_data(body, sizeof body, body_sha, NULL) ||
        sl_path(path, NULL, "%s/cache", dir) || sl_cache_open(path, &cache, &err))
        return -1;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (server.thread)
        script_stop(&server);
    return sl_rmtree(dir, NULL);
}

static void serve(void (*answer)(struct script *, int, const struct request *, int))
{
    server.answer = answer;
    assert_int_equal(script_start(&server), 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/file", server.port);
}

static int get(const char *sha256, int64_t bytes)
{
    const struct sl_transfer t = {.tries = 4};
    return sl_transfer_get(&t, &cache, "the file", url, sha256, bytes, &got, &err);
}

static int count(const char *below)
{
    char path[SL_PATH_MAX];
    snprintf(path, sizeof path, "%s/cache/%s", dir, below);
    return files_at(path);
}

static void assert_got_body(void)
{
    char sha[65];
    int64_t bytes;
    assert_int_equal(sl_sha256_file(got.path, sha, &bytes, &err), 0);
    assert_string_equal(sha, body_sha);
    assert_string_equal(got.sha256, body_sha);
    assert_int_equal(got.bytes, bytes);
}

/* ---- breaks ---------------------------------------------------------------------------------- */

static void cuts(struct script *s, int n, const struct request *r, int fd)
{
    script_file(s, r, fd, "", n < 3 ? 300000 : BODY_BYTES);
}

static void goes_on_after_each_cut(void **state)
{
    (void)state;
    serve(cuts);
    if (get(body_sha, BODY_BYTES))
        fail_msg("%s", err.msg);
    assert_got_body();
    assert_int_equal(atomic_load(&server.n), 4);
    assert_int_equal(server.requests[0].from, -1);
    assert_int_equal(server.requests[1].from, 300000);
    assert_int_equal(server.requests[3].from, 900000);
    assert_int_equal(count("partial"), 0);
    assert_int_equal(get(body_sha, BODY_BYTES), 0); /* and never again */
    assert_true(got.cached);
    assert_int_equal(atomic_load(&server.n), 4);
}

static void ignores_ranges(struct script *s, int n, const struct request *r, int fd)
{
    struct request whole = *r;
    whole.from = -1;
    script_file(s, &whole, fd, "", n < 2 ? 400000 : BODY_BYTES);
}

static void starts_over_where_ranges_are_unknown(void **state)
{
    (void)state;
    serve(ignores_ranges);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_got_body();
}

static void always_cuts(struct script *s, int n, const struct request *r, int fd)
{
    (void)n;
    (void)r;
    (void)s;
    script_send(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "", 0);
}

static void gives_up_and_says_where(void **state)
{
    (void)state;
    serve(always_cuts);
    assert_int_equal(get(body_sha, BODY_BYTES), SL_RETRY);
    assert_non_null(strstr(err.msg, url));
    assert_non_null(strstr(err.msg, "the file"));
    assert_int_equal(atomic_load(&server.n), 4);
    assert_int_equal(count("sha256"), 0);
}

static void fails_then_works(struct script *s, int n, const struct request *r, int fd)
{
    static const char *const status[] = {"503 Later", "429 Slow", "500 Oops"};
    if (n < 3)
        script_status(fd, status[n]);
    else
        script_file(s, r, fd, "", BODY_BYTES);
}

static void tries_again_what_may_pass(void **state)
{
    (void)state;
    serve(fails_then_works);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_got_body();
}

static void by_path(struct script *s, int n, const struct request *r, int fd)
{
    (void)n;
    (void)r;
    script_status(fd, s->other);
}

static void final_answers_are_final(void **state)
{
    static const struct {
        const char *status;
        int code;
    } cases[] = {{"404 Gone", SL_NOTFOUND}, {"401 Who", SL_DENIED}, {"403 No", SL_DENIED},
                 {"400 Bad", SL_SPEC},      {"204 Empty", SL_SPEC}, {"301 Elsewhere", SL_SPEC}};
    (void)state;
    serve(by_path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        server.other = cases[i].status;
        sl_err_clear(&err);
        assert_int_equal(get(body_sha, BODY_BYTES), cases[i].code);
        assert_non_null(strstr(err.msg, "the file"));
        assert_int_equal(atomic_load(&server.n), (int)i + 1);
    }
}

static void server_down(void **state)
{
    (void)state;
    serve(by_path);
    script_stop(&server);
    server.thread = 0;
    assert_int_equal(get(body_sha, BODY_BYTES), SL_RETRY);
    assert_non_null(strstr(err.msg, url));
}

static bool stop_soon(void *arg)
{
    return sl_boot_us() > *(int64_t *)arg;
}

static void a_wait_can_be_stopped(void **state)
{
    int64_t until = sl_boot_us() + 300000, begin = sl_boot_us();
    const struct sl_transfer t = {.tries = 50, .watch = {.arg = &until, .stop = stop_soon}};
    (void)state;
    server.other = "503 Later";
    serve(by_path);
    assert_int_equal(sl_transfer_get(&t, &cache, "it", url, body_sha, -1, &got, &err),
                     SL_CANCELLED);
    assert_true(sl_boot_us() - begin < 1500000);
}

/* ---- lies ------------------------------------------------------------------------------------ */

static void whole(struct script *s, int n, const struct request *r, int fd)
{
    (void)n;
    script_file(s, r, fd, "", BODY_BYTES);
}

static void wrong_digest_is_named_and_dropped(void **state)
{
    char wrong[65];
    (void)state;
    serve(whole);
    assert_int_equal(sl_sha256_data("x", 1, wrong, NULL), 0);
    assert_int_equal(get(wrong, -1), SL_DATA);
    assert_non_null(strstr(err.msg, wrong));
    assert_non_null(strstr(err.msg, body_sha));
    assert_int_equal(atomic_load(&server.n), 1);
    assert_int_equal(count("sha256"), 0);
    assert_int_equal(count("partial"), 0);
}

static void wrong_sizes(void **state)
{
    (void)state;
    serve(whole);
    assert_int_equal(get(body_sha, 1000), SL_DATA);
    assert_non_null(strstr(err.msg, "1000"));
    sl_err_clear(&err);
    assert_int_equal(get(body_sha, BODY_BYTES + 1), SL_RETRY); /* as if it were cut */
    assert_int_equal(count("sha256"), 0);
}

static void bad_input(void **state)
{
    static const char *const urls[] = {"ftp://x/y", "file:///etc/passwd",        "http://",
                                       "x",         "http://user:secret@host/x", ""};
    (void)state;
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        snprintf(url, sizeof url, "%s", urls[i]);
        assert_int_equal(get(NULL, -1), SL_SPEC);
    }
    snprintf(url, sizeof url, "http://127.0.0.1:1/");
    assert_int_equal(get("../../x", -1), SL_SPEC);
}

static void leftovers_of_a_killed_process(void **state)
{
    char path[SL_PATH_MAX];
    (void)state;
    serve(whole);
    /* A good beginning is gone on from. */
    snprintf(path, sizeof path, "%s/cache/partial/%s", dir, body_sha);
    assert_int_equal(sl_file_write(path, body, 700000, &err), 0);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_got_body();
    assert_int_equal(server.requests[0].from, 700000);
    /* Whole but not renamed: no request at all. */
    assert_int_equal(rename(got.path, path), 0);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_int_equal(atomic_load(&server.n), 1);
    /* Bytes of something else are found out and replaced, shorter or longer than the file. */
    for (int64_t size = -1; size <= (int64_t)BODY_BYTES; size += BODY_BYTES + 1) {
        static char junk[BODY_BYTES + 5];
        for (size_t len = 5; len < 8; len += 2) {
            assert_int_equal(unlink(got.path), 0);
            assert_int_equal(sl_file_write(path, junk, len == 5 ? sizeof junk : 7777, &err), 0);
            sl_err_clear(&err);
            if (get(body_sha, size))
                fail_msg("%s", err.msg);
            assert_got_body();
        }
    }
    assert_int_equal(count("partial"), 0);
}

static void a_changed_cached_file_is_fetched_again(void **state)
{
    (void)state;
    serve(whole);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    struct stat st;
    assert_int_equal(stat(got.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0444);
    assert_int_equal(chmod(got.path, 0644), 0);
    FILE *f = fopen(got.path, "r+");
    assert_non_null(f);
    fputs("changed", f);
    fclose(f);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_int_equal(atomic_load(&server.n), 2);
    assert_got_body();
}

/* ---- URLs without a digest ------------------------------------------------------------------- */

static void with_etag(struct script *s, int n, const struct request *r, int fd)
{
    char etag[64], header[80];
    snprintf(etag, sizeof etag, "\"%s\"", s->other);
    snprintf(header, sizeof header, "ETag: %s\r\n", etag);
    (void)n;
    if (strstr(r->text, "If-None-Match") && strstr(r->text, etag))
        script_status(fd, "304 Same");
    else
        script_file(s, r, fd, header, BODY_BYTES);
}

static void unchanged_etag_means_no_transfer(void **state)
{
    (void)state;
    server.other = "one";
    serve(with_etag);
    assert_int_equal(get(NULL, -1), 0);
    assert_false(got.cached);
    assert_got_body();
    assert_int_equal(get(NULL, -1), 0);
    assert_true(got.cached);
    assert_got_body();
    server.other = "two"; /* changed */
    server.len = 1000;
    assert_int_equal(get(NULL, -1), 0);
    assert_false(got.cached);
    assert_int_equal(got.bytes, 1000);
    assert_int_equal(unlink(got.path), 0); /* what is known is of no use without the file */
    assert_int_equal(get(NULL, -1), 0);
    assert_int_equal(got.bytes, 1000);
}

static void changes_while_cut(struct script *s, int n, const struct request *r, int fd)
{
    struct request whole_of = *r;
    if (n == 0) {
        script_file(s, r, fd, "ETag: \"one\"\r\n", 5000);
        return;
    }
    if (!strstr(r->text, "If-Range: \"two\"")) /* other content now: the range does not apply */
        whole_of.from = -1;
    s->body = body + 17;
    s->len = 20000;
    script_file(s, &whole_of, fd, "ETag: \"two\"\r\n", n == 1 ? 9000 : 20000);
}

static void a_file_that_changes_meanwhile_is_not_mixed(void **state)
{
    char sha[65];
    (void)state;
    serve(changes_while_cut);
    assert_int_equal(get(NULL, -1), 0);
    assert_int_equal(sl_sha256_data(body + 17, 20000, sha, NULL), 0);
    assert_string_equal(got.sha256, sha);
    assert_int_equal(server.requests[1].from, 5000);
    assert_int_equal(server.requests[2].from, 9000);
}

static void cut_without_etag(struct script *s, int n, const struct request *r, int fd)
{
    script_file(s, r, fd, "", n == 0 ? 5000 : BODY_BYTES);
}

static void without_etag_it_starts_over(void **state)
{
    (void)state;
    serve(cut_without_etag);
    assert_int_equal(get(NULL, -1), 0);
    assert_got_body();
    assert_int_equal(server.requests[1].from, -1);
}

static void wrong_part(struct script *s, int n, const struct request *r, int fd)
{
    struct request other = *r;
    if (n > 0)
        other.from = 100; /* whatever was asked for */
    script_file(s, &other, fd, "ETag: \"one\"\r\n", n == 0 ? 5000 : BODY_BYTES);
}

static void a_part_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    serve(wrong_part);
    assert_int_equal(get(NULL, -1), SL_DATA);
    assert_non_null(strstr(err.msg, "byte 100 where 5000"));
    assert_int_equal(count("sha256"), 0);
}

/* ---- the token ------------------------------------------------------------------------------- */

static void redirects(struct script *s, int n, const struct request *r, int fd)
{
    char status[200];
    (void)n;
    (void)r;
    snprintf(status, sizeof status, "302 There\r\nLocation: %s", s->other);
    script_status(fd, status);
}

static void the_token_stays_with_its_server(void **state)
{
    struct script second = {.answer = whole, .body = body, .len = sizeof body};
    char elsewhere[64], own[64];
    (void)state;
    assert_int_equal(script_start(&second), 0);
    snprintf(elsewhere, sizeof elsewhere, "http://127.0.0.1:%d/x", second.port);
    server.other = elsewhere;
    serve(redirects);
    snprintf(own, sizeof own, "http://127.0.0.1:%d", server.port);
    struct sl_transfer t = {.server = own, .token = TOKEN, .tries = 2};
    /* Own server: gets the token; its redirect is not followed. */
    assert_int_equal(sl_transfer_get(&t, &cache, "it", url, body_sha, -1, &got, NULL), SL_SPEC);
    assert_non_null(strstr(server.requests[0].text, TOKEN));
    assert_int_equal(atomic_load(&second.n), 0);
    /* Another server: no token, whatever path and name it has. */
    assert_int_equal(sl_transfer_get(&t, &cache, "it", elsewhere, body_sha, -1, &got, &err), 0);
    assert_null(strstr(second.requests[0].text, TOKEN));
    assert_null(strcasestr(second.requests[0].text, "authorization"));
    assert_int_equal(unlink(got.path), 0);
    /* Another server that redirects to ours: still none. */
    snprintf(own, sizeof own, "http://127.0.0.1:%d", second.port);
    assert_int_equal(sl_transfer_get(&t, &cache, "it", url, body_sha, -1, &got, &err), 0);
    assert_null(strstr(server.requests[1].text, TOKEN));
    assert_null(strstr(second.requests[1].text, TOKEN));
    /* Same host by another name is another origin. */
    snprintf(url, sizeof url, "http://localhost:%d/x", second.port);
    sl_transfer_get(&t, &cache, "it", url, NULL, -1, &got, NULL);
    for (int i = 0; i < atomic_load(&second.n); i++)
        assert_null(strstr(second.requests[i].text, TOKEN));
    script_stop(&second);
}

/* ---- several processes ----------------------------------------------------------------------- */

static void slow(struct script *s, int n, const struct request *r, int fd)
{
    (void)n;
    usleep(300000);
    script_file(s, r, fd, "", BODY_BYTES);
}

static void processes_fetch_a_file_once(void **state)
{
    pid_t pids[4];
    (void)state;
    serve(slow);
    for (int i = 0; i < 4; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            _exit(get(body_sha, BODY_BYTES) ? 1 : 0);
    }
    for (int i = 0; i < 4; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(atomic_load(&server.n), 1);
    assert_int_equal(get(body_sha, BODY_BYTES), 0);
    assert_got_body();
    assert_int_equal(count("partial"), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(goes_on_after_each_cut),
        T(starts_over_where_ranges_are_unknown),
        T(gives_up_and_says_where),
        T(tries_again_what_may_pass),
        T(final_answers_are_final),
        T(server_down),
        T(a_wait_can_be_stopped),
        T(wrong_digest_is_named_and_dropped),
        T(wrong_sizes),
        T(bad_input),
        T(leftovers_of_a_killed_process),
        T(a_changed_cached_file_is_fetched_again),
        T(unchanged_etag_means_no_transfer),
        T(a_file_that_changes_meanwhile_is_not_mixed),
        T(without_etag_it_starts_over),
        T(a_part_that_does_not_fit_is_refused),
        T(the_token_stays_with_its_server),
        T(processes_fetch_a_file_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

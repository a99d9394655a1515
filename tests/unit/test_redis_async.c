/* The connection on the event loop against servers that behave badly. */
#include "base/clock.h"
#include "queue/redis.h"
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define WATCHED_US INT64_C(1500000)

/* Takes every connection and closes it at once, with or without a word: as Redis does with
 * maxclients reached. */
struct slammer {
    struct sl_loop *loop;
    int listener, accepted;
    const char *last_words;
};

static void on_connection(void *arg, int fd, uint32_t events)
{
    struct slammer *s = arg;
    int c = accept(fd, NULL, NULL);

    (void)events;
    assert_true(c >= 0);
    s->accepted++;
    if (s->last_words)
        assert_true(write(c, s->last_words, strlen(s->last_words)) > 0);
    close(c);
}

static void on_state(void *arg, bool up, const struct sl_err *err)
{
    (void)arg;
    (void)up;
    (void)err;
}

static void over(void *arg)
{
    sl_loop_stop(arg);
}

static int connections_in_a_while(const char *last_words)
{
    struct slammer s = {.last_words = last_words};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct sl_redis_url url = {.n_hosts = 0};
    struct sl_redis_async *r;
    char dir[] = "/tmp/sl-slam-XXXXXX";

    assert_non_null(mkdtemp(dir));
    snprintf(a.sun_path, sizeof a.sun_path, "%s/s", dir);
    memcpy(url.path, a.sun_path, sizeof url.path);
    s.listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(s.listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s.listener, 16), 0);
    assert_int_equal(sl_loop_new(&s.loop, NULL), 0);
    assert_int_equal(sl_loop_fd(s.loop, s.listener, EPOLLIN, on_connection, &s, NULL), 0);
    assert_int_equal(sl_redis_async_new(s.loop, &url, on_state, NULL, &r, NULL), 0);
    assert_true(sl_loop_timer(s.loop, WATCHED_US, over, s.loop, NULL) >= 0);
    assert_int_equal(sl_loop_run(s.loop, NULL), 0);
    sl_redis_async_free(r);
    sl_loop_free(s.loop);
    close(s.listener);
    unlink(a.sun_path);
    rmdir(dir);
    return s.accepted;
}

static void a_server_that_slams_the_door_is_left_in_peace(void **state)
{
    (void)state;
    assert_in_range(connections_in_a_while(NULL), 2, 10);
    assert_in_range(connections_in_a_while("-ERR max number of clients reached\r\n"), 2, 10);
}

/* A Cluster node that sends everybody to itself. */
static void on_lost_client(void *arg, int fd, uint32_t events)
{
    char asked[4096], answer[64];
    struct slammer *s = arg;

    (void)events;
    if (read(fd, asked, sizeof asked) > 0) {
        snprintf(answer, sizeof answer, "-MOVED 7 127.0.0.1:%s\r\n", s->last_words);
        assert_true(write(fd, answer, strlen(answer)) > 0);
    } else {
        sl_loop_fd_remove(s->loop, fd);
        close(fd);
    }
}

static void on_client(void *arg, int fd, uint32_t events)
{
    struct slammer *s = arg;
    int c = accept(fd, NULL, NULL);

    (void)events;
    assert_true(c >= 0);
    s->accepted++;
    assert_int_equal(sl_loop_fd(s->loop, c, EPOLLIN, on_lost_client, s, NULL), 0);
}

static void nodes_that_send_us_in_a_circle_are_left_in_peace(void **state)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    struct slammer s = {.accepted = 0};
    struct sl_redis_async *r;
    struct sl_redis_url url;
    char text[64], port[16];

    (void)state;
    s.listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(s.listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s.listener, 16), 0);
    assert_int_equal(getsockname(s.listener, (struct sockaddr *)&a, &len), 0);
    snprintf(port, sizeof port, "%d", ntohs(a.sin_port));
    snprintf(text, sizeof text, "redis://127.0.0.1:%s", port);
    s.last_words = port;
    assert_int_equal(sl_redis_url_parse(text, &url, NULL), 0);
    assert_int_equal(sl_loop_new(&s.loop, NULL), 0);
    assert_int_equal(sl_loop_fd(s.loop, s.listener, EPOLLIN, on_client, &s, NULL), 0);
    assert_int_equal(sl_redis_async_new(s.loop, &url, on_state, NULL, &r, NULL), 0);
    assert_true(sl_loop_timer(s.loop, WATCHED_US, over, s.loop, NULL) >= 0);
    assert_int_equal(sl_loop_run(s.loop, NULL), 0);
    sl_redis_async_free(r);
    sl_loop_free(s.loop);
    close(s.listener);
    assert_in_range(s.accepted, 9, 90); /* nine in a row, then growing pauses */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_server_that_slams_the_door_is_left_in_peace),
        cmocka_unit_test(nodes_that_send_us_in_a_circle_are_left_in_peace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

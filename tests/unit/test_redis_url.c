/* Redis URLs: what they may say, and that no message shows a password. */
#include "queue/redis.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static struct sl_redis_url parse(const char *text)
{
    struct sl_redis_url u;
    struct sl_err err = SL_ERR_INIT;

    if (sl_redis_url_parse(text, &u, &err))
        fail_msg("%s: %s", text, err.msg);
    return u;
}

static void hosts_and_database(void **state)
{
    struct sl_redis_url u = parse("redis://u:p%40ss@h.example:7000/3");

    (void)state;
    assert_int_equal(u.n_hosts, 1);
    assert_string_equal(u.hosts[0].name, "h.example");
    assert_int_equal(u.hosts[0].port, 7000);
    assert_string_equal(u.user, "u");
    assert_string_equal(u.password, "p@ss");
    assert_int_equal(u.db, 3);
    assert_false(u.tls);
    u = parse("redis://[::1]:7001");
    assert_string_equal(u.hosts[0].name, "::1");
    assert_int_equal(u.hosts[0].port, 7001);
    u = parse("redis://a,b:7002,[::2]");
    assert_int_equal(u.n_hosts, 3);
    assert_int_equal(u.hosts[0].port, 6379);
    assert_int_equal(u.hosts[1].port, 7002);
    assert_string_equal(u.hosts[2].name, "::2");
    u = parse("redis://:only@h?db=4");
    assert_string_equal(u.user, "");
    assert_string_equal(u.password, "only");
    assert_int_equal(u.db, 4);
}

static void unix_sockets(void **state)
{
    struct sl_redis_url u = parse("unix:///a/b.sock?db=2");

    (void)state;
    assert_int_equal(u.n_hosts, 0);
    assert_string_equal(u.path, "/a/b.sock");
    assert_int_equal(u.db, 2);
    u = parse("unix://agent:s%3acret@/run/redis/redis.sock");
    assert_string_equal(u.path, "/run/redis/redis.sock");
    assert_string_equal(u.user, "agent");
    assert_string_equal(u.password, "s:cret");
}

static void tls(void **state)
{
    struct sl_redis_url u =
        parse("rediss://h:7000/1?cacert=/etc/ca.pem&cert=c.pem&key=k%26.pem&sni=redis.example");

    (void)state;
    assert_true(u.tls);
    assert_int_equal(u.db, 1);
    assert_string_equal(u.ca_file, "/etc/ca.pem");
    assert_string_equal(u.cert_file, "c.pem");
    assert_string_equal(u.key_file, "k&.pem");
    assert_string_equal(u.server_name, "redis.example");
    assert_true(parse("rediss+sentinel://h/m").tls);
}

static void sentinels(void **state)
{
    struct sl_redis_url u =
        parse("redis+sentinel://u:p@s1,s2:26380/mymaster/2?sentinel_user=x&sentinel_password=y%20z");

    (void)state;
    assert_int_equal(u.n_hosts, 2);
    assert_int_equal(u.hosts[0].port, 26379);
    assert_int_equal(u.hosts[1].port, 26380);
    assert_string_equal(u.primary, "mymaster");
    assert_int_equal(u.db, 2);
    assert_string_equal(u.password, "p");
    assert_string_equal(u.sentinel_user, "x");
    assert_string_equal(u.sentinel_password, "y z");
}

static void what_is_no_url_is_refused_without_its_password(void **state)
{
    const char *bad[] = {"",
                         "http://secret@x",
                         "redis://",
                         "redis://h:0",
                         "redis://h:70000",
                         "redis://h/x",
                         "redis://a,,b",
                         "redis://a,b,c,d,e,f,g,h,i",
                         "unix://relative",
                         "redis://secret@h",
                         "redis://u:secret@",
                         "redis://u:secret@h:port",
                         "redis://u:secret%00@h",
                         "redis://h?sentinel_password=secret",
                         "redis+sentinel://h?sentinel_password=secret",
                         "redis+sentinel://u:secret@h:26379",
                         "redis://h?cacert=/ca.pem",
                         "redis://h?password=secret",
                         "rediss://h?cert=c.pem",
                         "redis://h?db=x"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_redis_url u;
        struct sl_err err = SL_ERR_INIT;
        if (sl_redis_url_parse(bad[i], &u, &err) != SL_SPEC)
            fail_msg("taken: %s", bad[i]);
        assert_true(strlen(err.msg) > 10);
        assert_null(strstr(err.msg, "secret"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hosts_and_database),
        cmocka_unit_test(unix_sockets),
        cmocka_unit_test(tls),
        cmocka_unit_test(sentinels),
        cmocka_unit_test(what_is_no_url_is_refused_without_its_password),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

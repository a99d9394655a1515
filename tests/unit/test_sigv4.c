/* The vectors that AWS publishes for its signature (tests/golden/sigv4.py), step by step. */
#include "artifacts/sigv4.h"
#include "base/json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static void check(const json_t *v)
{
    const char *name = sl_json_str(v, "name", "?"), *body = sl_json_str(v, "body", "");
    const char *token = sl_json_str(v, "token", ""), *time = sl_json_str(v, "time", "");
    const struct sl_sigv4 s = {.key_id = sl_json_str(v, "key_id", ""),
                               .secret = sl_json_str(v, "secret", ""),
                               .region = sl_json_str(v, "region", ""),
                               .service = sl_json_str(v, "service", ""),
                               .time = time,
                               .normalize = sl_json_bool(v, "normalize", true)};
    struct sl_sigv4_header headers[SL_SIGV4_MAX_HEADERS];
    char sha256[SL_SHA256_HEX + 1], hex[SL_SHA256_HEX + 1];
    struct sl_err err = SL_ERR_INIT;
    int n = 0;
    size_t i;
    json_t *pair;
    json_array_foreach(sl_json_get(v, "headers"), i, pair)
        headers[n++] = (struct sl_sigv4_header){json_string_value(json_array_get(pair, 0)),
                                                json_string_value(json_array_get(pair, 1))};
    assert_int_equal(sl_sha256_data(body, strlen(body), sha256, NULL), 0);
    headers[n++] = (struct sl_sigv4_header){"X-Amz-Date", time};
    if (*token)
        headers[n++] = (struct sl_sigv4_header){"X-Amz-Security-Token", token};
    if (sl_json_bool(v, "sign_body", false))
        headers[n++] = (struct sl_sigv4_header){"X-Amz-Content-Sha256", sha256};
    const struct sl_sigv4_request r = {sl_json_str(v, "method", ""),
                                       sl_json_str(v, "path", ""),
                                       sl_json_str(v, "query", ""),
                                       headers,
                                       n,
                                       sha256};
    struct sl_buf canonical, names, to_sign, whole;
    sl_buf_init(&canonical, SL_SIGV4_MAX_BYTES);
    sl_buf_init(&names, SL_SIGV4_MAX_BYTES);
    sl_buf_init(&to_sign, SL_SIGV4_MAX_BYTES);
    sl_buf_init(&whole, SL_SIGV4_MAX_BYTES);
    if (sl_sigv4_canonical(&s, &r, &canonical, &names, &err) ||
        sl_sigv4_to_sign(&s, canonical.p, &to_sign, &err) ||
        sl_sigv4_signature(&s, to_sign.p, hex, &err) ||
        sl_sigv4_authorization(&s, &r, &whole, &err))
        fail_msg("%s: %s", name, err.msg);
    print_message("# %s\n", name);
    assert_string_equal(canonical.p, sl_json_str(v, "canonical", "?"));
    assert_string_equal(to_sign.p, sl_json_str(v, "to_sign", "?"));
    assert_string_equal(hex, sl_json_str(v, "signature", "?"));
    assert_non_null(strstr(whole.p, hex));
    sl_buf_release(&canonical);
    sl_buf_release(&names);
    sl_buf_release(&to_sign);
    sl_buf_release(&whole);
}

static void signs_as_published(void **state)
{
    (void)state;
    json_t *vectors = NULL, *v;
    struct sl_err err = SL_ERR_INIT;
    size_t i;
    if (sl_json_read("tests/golden/sigv4.json", SL_JSON_FILE_MAX, &vectors, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(json_array_size(vectors), 38);
    json_array_foreach(vectors, i, v)
        check(v);
    json_decref(vectors);
}

static void writes_the_time_in_utc(void **state)
{
    (void)state;
    char time[SL_SIGV4_TIME_MAX];
    sl_sigv4_time(1440938160, time);
    assert_string_equal(time, "20150830T123600Z");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_as_published),
        cmocka_unit_test(writes_the_time_in_utc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What transfers and the API client say of the URLs that they ask. */
#include "artifacts/web.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void what_is_told_of_a_url_has_no_credentials(void **state)
{
    static const char *const told[][2] = {
        {"no URL at all", "no URL at all"},
        {"https://h/p answered 403", "https://h/p answered 403"},
        {"x (https://h/p?sig=abc&t=1): refused", "x (https://h/p?...): refused"},
        {"http://me:pa@ss@h:1/p?q=s3cret: no, https://b?k=cret.", "http://h:1/p?...: no, https://b?...."},
        {"http://h/p?", "http://h/p?"},
        {"http://h/p?k", "http://h/p?."},
        {"http://h/a@b", "http://h/a@b"},
        {"://", "://"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s", told[i][0]);
        sl_web_redact(text);
        assert_string_equal(text, told[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_told_of_a_url_has_no_credentials)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

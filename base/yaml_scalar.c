#include "base/yaml_scalar.h"
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <regex.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NUMBER_MAX 256 /* bytes; a longer scalar is a string */

/* PyYAML's resolver; the second half of the floats is what OmegaConf adds to it. */
static const char int_pattern[] =
    "^([-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|"
    "[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+)$";
static const char float_pattern[] =
    "^([-+]?[0-9][0-9_]*\\.[0-9_]*([eE][-+][0-9]+)?|\\.[0-9][0-9_]*([eE][-+][0-9]+)?|"
    "[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\\.[0-9_]*|"
    "[-+]?[0-9]+(_[0-9]+)*\\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9]+(_[0-9]+)*([eE][-+]?[0-9]+))$";
/* Hydra's OverrideLexer.g4. */
#define DIGITS "[0-9](_?[0-9])*"
static const char hydra_int_pattern[] = "^[-+]?(0|[1-9](_?[0-9])*)$";
static const char hydra_float_pattern[] =
    "^[-+]?((" DIGITS ")?\\." DIGITS "|" DIGITS "\\.|" DIGITS "[eE][-+]?" DIGITS "|"
    "((" DIGITS ")?\\." DIGITS "|" DIGITS "\\.)[eE][-+]?" DIGITS ")$";

static pthread_once_t once = PTHREAD_ONCE_INIT;
static regex_t int_regex[2], float_regex[2];
static bool have_regex;

static void set_up(void)
{
    const int how = REG_EXTENDED | REG_NOSUB;

    have_regex = !regcomp(&int_regex[SL_YAML_RULES], int_pattern, how) &&
                 !regcomp(&float_regex[SL_YAML_RULES], float_pattern, how) &&
                 !regcomp(&int_regex[SL_HYDRA_RULES], hydra_int_pattern, how) &&
                 !regcomp(&float_regex[SL_HYDRA_RULES], hydra_float_pattern, how);
}

static bool one_of(const char *s, const char *const *words)
{
    while (*words && strcmp(s, *words) != 0)
        words++;
    return *words != NULL;
}

/* Base 60, as in 1:30 or 1:30.5. */
static double sexagesimal(const char *s)
{
    double sign = *s == '-' ? -1 : 1, value = 0;

    for (s += *s == '-' || *s == '+'; *s; s += strcspn(s, ":"), s += *s == ':')
        value = value * 60 + strtod(s, NULL);
    return sign * value;
}

static int integer(const char *s, json_t **ret_json, struct sl_err *err)
{
    const char *digits = s + (*s == '-' || *s == '+');
    bool negative = *s == '-';
    int base = digits[0] != '0' ? 10 : digits[1] == 'x' ? 16 : digits[1] == 'b' ? 2 : 8;
    unsigned long long u;
    char *end;

    if (strchr(digits, ':')) {
        double d = sexagesimal(s);

        if (fabs(d) > 0x1p53)
            return sl_err_set(err, SL_SPEC, "%.40s is too large for an integer", s);
        *ret_json = json_integer((json_int_t)d);
        return 0;
    }
    if (base == 2 || base == 16)
        digits += 2;
    errno = 0;
    u = strtoull(digits, &end, base);
    if (!*digits || *end)
        return sl_err_set(err, SL_SPEC, "%.40s is no number", s);
    if (errno || u > (unsigned long long)INT64_MAX + negative)
        return sl_err_set(err, SL_SPEC, "%.40s is too large for an integer", s);
    *ret_json = json_integer(negative ? (json_int_t)-u : (json_int_t)u);
    return 0;
}

/* A plain scalar that looks like a number, or NULL in *ret_json. */
static int number(enum sl_yaml_rules rules, const char *text, size_t len, json_t **ret_json,
                  struct sl_err *err)
{
    char s[NUMBER_MAX];
    size_t n = 0;
    double d;
    bool is_int;

    if (len >= NUMBER_MAX)
        return 0;
    is_int = !regexec(&int_regex[rules], text, 0, NULL, 0);
    if (!is_int && regexec(&float_regex[rules], text, 0, NULL, 0))
        return 0;
    for (size_t i = 0; i < len; i++)
        if (text[i] != '_')
            s[n++] = text[i];
    s[n] = 0;
    if (is_int)
        return integer(s, ret_json, err);
    d = strchr(s, ':') ? sexagesimal(s) : strtod(s, NULL);
    if (isfinite(d))
        *ret_json = json_real(d);
    return 0;
}

int sl_yaml_scalar(enum sl_yaml_rules rules, const char *s, size_t len, json_t **ret_json,
                   struct sl_err *err)
{
    static const char *const nulls[] = {"~", "null", "Null", "NULL", "", NULL};
    static const char *const trues[] = {"true", "True", "TRUE", "yes", "Yes",
                                        "YES",  "on",   "On",   "ON",  NULL};
    static const char *const falses[] = {"false", "False", "FALSE", "no",  "No",
                                         "NO",    "off",   "Off",   "OFF", NULL};

    pthread_once(&once, set_up);
    if (!have_regex)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    if (rules == SL_HYDRA_RULES ? !strcasecmp(s, "null") : one_of(s, nulls))
        *ret_json = json_null();
    else if (rules == SL_HYDRA_RULES ? !strcasecmp(s, "true") : one_of(s, trues))
        *ret_json = json_true();
    else if (rules == SL_HYDRA_RULES ? !strcasecmp(s, "false") : one_of(s, falses))
        *ret_json = json_false();
    else
        return number(rules, s, len, ret_json, err);
    return 0;
}

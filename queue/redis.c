#include "queue/redis.h"
#include "queue/redis_link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sl_cmd_init(struct sl_cmd *c)
{
    memset(c, 0, sizeof *c);
}

void sl_cmd_init_script(struct sl_cmd *c, const struct sl_script *script, const char *key)
{
    sl_cmd_init(c);
    c->script = script;
    sl_cmd_add(c, "EVALSHA");
    sl_cmd_add(c, script->sha1);
    sl_cmd_add(c, "1");
    sl_cmd_add(c, key);
}

void sl_cmd_add_data(struct sl_cmd *c, const void *data, size_t len)
{
    if (c->failed)
        return;
    if (c->argc == c->cap) {
        int cap = c->cap ? c->cap * 2 : 16;
        char **argv = realloc(c->argv, (size_t)cap * sizeof *argv);
        if (argv)
            c->argv = argv;
        size_t *lens = realloc(c->len, (size_t)cap * sizeof *lens);
        if (lens)
            c->len = lens;
        if (!argv || !lens || cap > 2 * SL_REDIS_MAX_ARGS) {
            c->failed = true;
            return;
        }
        c->cap = cap;
    }
    char *p = malloc(len + 1);
    if (!p) {
        c->failed = true;
        return;
    }
    if (len)
        memcpy(p, data, len);
    p[len] = 0;
    c->argv[c->argc] = p;
    c->len[c->argc++] = len;
}

void sl_cmd_add(struct sl_cmd *c, const char *arg)
{
    sl_cmd_add_data(c, arg ? arg : "", arg ? strlen(arg) : 0);
}

void sl_cmd_add_int(struct sl_cmd *c, int64_t v)
{
    char text[32];

    snprintf(text, sizeof text, "%lld", (long long)v);
    sl_cmd_add(c, text);
}

void sl_cmd_release(struct sl_cmd *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->argc; i++)
        free(c->argv[i]);
    free(c->argv);
    free(c->len);
    memset(c, 0, sizeof *c);
}

int sl_redis_format(const struct sl_cmd *c, bool whole_script, char **ret_bytes, size_t *ret_len,
                    struct sl_err *err)
{
    char *bytes = NULL;

    if (c->failed || c->argc == 0)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis command");
    if (c->argc > SL_REDIS_MAX_ARGS)
        return sl_err_set(err, SL_SPEC, "a Redis command of more than %d arguments",
                          SL_REDIS_MAX_ARGS);
    const char *argv[SL_REDIS_MAX_ARGS];
    size_t lens[SL_REDIS_MAX_ARGS];
    for (int i = 0; i < c->argc; i++) {
        argv[i] = c->argv[i];
        lens[i] = c->len[i];
    }
    if (c->script && whole_script) {
        argv[0] = "EVAL";
        lens[0] = 4;
        argv[1] = c->script->text;
        lens[1] = c->script->len;
    }
    int n = redisFormatCommandArgv(&bytes, c->argc, argv, lens);
    if (n < 0)
        return sl_err_set(err, SL_NOMEM, "out of memory for a Redis command");
    *ret_bytes = bytes;
    *ret_len = (size_t)n;
    return 0;
}

bool sl_redis_error_is(const redisReply *reply, const char *word)
{
    size_t n = strlen(word), len = (size_t)reply->len;

    return reply->type == REDIS_REPLY_ERROR && len >= n && !memcmp(reply->str, word, n) &&
           (len == n || reply->str[n] == ' ' || reply->str[n] == ':');
}

int sl_redis_error(const redisReply *reply, struct sl_err *err)
{
    static const struct {
        const char *word;
        int code;
        bool ours;
    } table[] = {
        {"LEASE", SL_LEASE, true},       {"NOTFOUND", SL_NOTFOUND, true},
        {"CONFLICT", SL_CONFLICT, true}, {"CANCELLED", SL_CANCELLED, true},
        {"SPEC", SL_SPEC, true},         {"NOAUTH", SL_DENIED, false},
        {"WRONGPASS", SL_DENIED, false}, {"NOPERM", SL_DENIED, false},
        {"BUSY", SL_RETRY, false},       {"OOM", SL_RETRY, false},
        {"MISCONF", SL_RETRY, false},    {"NOREPLICAS", SL_RETRY, false},
    };

    if (reply->type != REDIS_REPLY_ERROR)
        return 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t n = strlen(table[i].word);
        if (!sl_redis_error_is(reply, table[i].word))
            continue;
        if (table[i].ours)
            return sl_err_set(err, table[i].code, "%s", reply->str + n + ((size_t)reply->len > n));
        return sl_err_set(err, table[i].code, "Redis refused: %s", reply->str);
    }
    return sl_err_set(err, SL_DATA, "Redis answered: %s", reply->str);
}

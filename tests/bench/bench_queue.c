/* What the queue's scripts cost Redis: claim and finish of no-op runs beside a bare pair of scripts with the same
 * keys, in turn in one Redis (appendonly everysec); a claim in front of a million waiting runs beside one in front of
 * a hundred. Cost is Redis's own CPU time, so that another process on the machine counts little. How long a script holds
 * Redis: bench_scripts.c. Prints TAP; exits 1 when a promise is broken. */
#include "base/json.h"
#include "queue/inner.h"
#include "tests/unit/private_redis.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PIPE 50    /* commands on the way at once */
#define ROUNDS 10
#define PAIRS 2000 /* a round */
#define TAG "{bare}"

/* The same keys are written, under the same fence; no order but the set's, no limits, classes, shares or bells, no
 * repeated calls, one call's argument for each thing said. */
static const char bare_claim[] =
    "local P, lease = KEYS[1], ARGV[1] local t = redis.call('TIME') local now = t[1] * 1000 "
    "local best = redis.call('ZRANGE', P .. ':ready', 0, 0) if not best[1] then return false end local id = best[1] "
    "redis.call('ZREM', P .. ':ready', id) local run = P .. ':run:' .. id "
    "redis.call('HSET', run, 'state', 'running', 'lease', lease, 'agent', ARGV[2], 'until', now + ARGV[3]) "
    "redis.call('HINCRBY', run, 'attempt', 1) redis.call('ZADD', P .. ':leases', now + ARGV[3], id) "
    "redis.call('HSET', P .. ':board', lease, id) redis.call('HSET', P .. ':board', 'v', now) "
    "redis.call('HINCRBY', P .. ':board', 'q', 1) redis.call('HINCRBY', P .. ':board', 'p', 1) "
    "redis.call('XADD', P .. ':events:' .. id, '*', 't', 'state', 'd', '{\"state\":\"running\"}') "
    "local h = redis.call('HMGET', run, 'attempt', 'name', 'spec') return {id, h[1], h[2], h[3]}";
static const char bare_finish[] =
    "local P, id, lease = KEYS[1], ARGV[1], ARGV[2] local run = P .. ':run:' .. id "
    "if redis.call('HGET', run, 'lease') ~= lease then return redis.error_reply('LEASE') end "
    "local t = redis.call('TIME') local now = t[1] * 1000 "
    "redis.call('HSET', run, 'state', 'succeeded', 'lease', '', 'outputs', ARGV[3], 'finished', now) "
    "redis.call('ZREM', P .. ':leases', id) redis.call('HDEL', P .. ':board', lease) "
    "redis.call('HINCRBY', P .. ':board', 'q', -1) redis.call('HINCRBY', P .. ':board', 'p', -1) "
    "redis.call('ZADD', P .. ':ended', now, id) redis.call('HSET', P .. ':outbox', id, ARGV[3]) "
    "redis.call('XADD', P .. ':events:' .. id, '*', 't', 'state', 'd', '{\"state\":\"succeeded\"}') return {ARGV[3], 'new'}";

static struct private_redis server;
static int sock;
static redisReader *reader;
static char sha[2][41];

static void die(const char *what)
{
    printf("not ok - %s\n", what);
    private_redis_stop(&server);
    exit(1);
}

static void send_args(int argc, const char **argv)
{
    char *text;
    int len = redisFormatCommandArgv(&text, argc, argv, NULL);

    if (len < 0 || sl_write_all(sock, text, (size_t)len, NULL))
        die("sending to Redis");
    redisFreeCommand(text);
}

/* Releases c. */
static void send_cmd(struct sl_cmd *c)
{
    send_args(c->argc, (const char **)c->argv);
    sl_cmd_release(c);
}

static redisReply *receive(void)
{
    static char buf[1 << 16];
    void *reply = NULL;

    while (redisReaderGetReply(reader, &reply) == REDIS_OK && !reply) {
        ssize_t n = read(sock, buf, sizeof buf);
        if (n <= 0 || redisReaderFeed(reader, buf, (size_t)n) != REDIS_OK)
            die("reading from Redis");
    }
    if (!reply || ((redisReply *)reply)->type == REDIS_REPLY_ERROR)
        die(reply ? ((redisReply *)reply)->str : "Redis's reply");
    return reply;
}

static redisReply *ask(int argc, const char **argv)
{
    send_args(argc, argv);
    return receive();
}
#define ASK(...)                                                                                   \
    ask((int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *[]){__VA_ARGS__})

/* CPU seconds of Redis's main thread so far. */
static double cpu(void)
{
    redisReply *r = ASK("INFO", "cpu");
    const char *user = strstr(r->str, "used_cpu_user_main_thread:");
    const char *sys = strstr(r->str, "used_cpu_sys_main_thread:");
    double s = user && sys ? atof(strchr(user, ':') + 1) + atof(strchr(sys, ':') + 1) : 0;

    freeReplyObject(r);
    return s;
}

static void load(int which, const char *text)
{
    redisReply *r = ASK("SCRIPT", "LOAD", text);

    snprintf(sha[which], sizeof sha[which], "%s", r->str);
    freeReplyObject(r);
}

static const char spec_text[] =
    "{\"api\":\"softlaunch/v1\",\"name\":\"no-op\",\"project\":\"%s\",\"queue\":\"default\",\"priority\":\"%s\","
    "\"model\":\"model:latest\",\"datasets\":{\"train\":[\"data:latest\"]},\"config\":{\"model\":{\"task_templates\":[]}},"
    "\"outputs\":{\"artifact\":\"result\"}}";

static void fill(struct sl_queue *q, int n, const char *priority)
{
    struct sl_err err = SL_ERR_INIT;
    char run[SL_ID_HEX + 1], text[1024];

    for (int i = 0; i < n; i++) {
        snprintf(text, sizeof text, spec_text, i % 2 ? "one" : "two", priority);
        json_t *spec = json_loads(text, 0, NULL);
        if (sl_queue_enqueue(q, spec, NULL, run, NULL, &err))
            die(err.msg);
        json_decref(spec);
    }
}

static void fill_bare(int n)
{
    char text[1024], id[SL_ID_HEX + 1], key[96], score[16];

    snprintf(text, sizeof text, spec_text, "one", "medium");
    for (int i = 0; i < n; i++) {
        sl_random_id(id);
        snprintf(key, sizeof key, TAG ":run:%s", id);
        snprintf(score, sizeof score, "%d", i);
        freeReplyObject(ASK("HSET", key, "name", "no-op", "spec", text, "state", "queued"));
        freeReplyObject(ASK("ZADD", TAG ":ready", score, id));
    }
}

static const char *const queues[] = {"default"};
static const char outputs[] = "[{\"output\":\"prompts\",\"artifact\":\"result\",\"number\":1,\"manifest\":\"m\"}]";

/* n claims and their finishes; seconds of Redis's CPU for both, of the claims alone in *ret_claims. */
static double pairs(bool ours, int n, bool finish, double *ret_claims)
{
    static char leases[PIPE][SL_ID_HEX + 1], runs[PIPE][SL_ID_HEX + 1];
    double claims = 0, finishes = 0;

    for (int done = 0; done < n; done += PIPE) {
        double start = cpu();
        for (int i = 0; i < PIPE; i++) {
            struct sl_cmd c;
            sl_random_id(leases[i]);
            if (ours) {
                sl_queue_cmd_claim(&c, leases[i], "agent-1", 30000, "cpu", queues, 1);
                send_cmd(&c);
            } else {
                send_args(7, (const char *[]){"EVALSHA", sha[0], "1", TAG, leases[i], "agent-1", "30000"});
            }
        }
        for (int i = 0; i < PIPE; i++) {
            redisReply *r = receive();
            if (r->type != REDIS_REPLY_ARRAY)
                die("a claim got nothing");
            snprintf(runs[i], sizeof runs[i], "%s", r->element[0]->str);
            freeReplyObject(r);
        }
        double middle = cpu();
        claims += middle - start;
        for (int i = 0; finish && i < PIPE; i++) {
            struct sl_cmd c;
            if (ours) {
                sl_queue_cmd(&c, SL_SCRIPT_FINISH);
                sl_cmd_add(&c, runs[i]);
                sl_cmd_add(&c, leases[i]);
                sl_cmd_add(&c, outputs);
                sl_cmd_add(&c, "");
                send_cmd(&c);
            } else {
                send_args(7, (const char *[]){"EVALSHA", sha[1], "1", TAG, runs[i], leases[i], outputs});
            }
        }
        for (int i = 0; finish && i < PIPE; i++)
            freeReplyObject(receive());
        finishes += cpu() - middle;
    }
    if (ret_claims)
        *ret_claims = claims;
    return claims + finishes;
}

static int check(bool good, const char *what)
{
    printf("%s - %s\n", good ? "ok" : "not ok", what);
    return good ? 0 : 1;
}

int main(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    double ours = 0, bare = 0, few = 0, many = 0;
    struct sl_cmd beat;
    struct sl_queue *q;
    int bad = 0;

    if (private_redis_start(&server) || sl_queue_new(server.url, &q, NULL))
        die("a private Redis");
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s", server.url + strlen("unix://"));
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    reader = redisReaderCreate();
    if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof addr))
        die("connecting");
    freeReplyObject(ASK("CONFIG", "SET", "appendfsync", "everysec"));
    load(0, bare_claim);
    load(1, bare_finish);
    freeReplyObject(ASK("SCRIPT", "LOAD", sl_script_get(SL_SCRIPT_HEARTBEAT)->text));
    sl_queue_cmd_heartbeat(&beat, "agent-1", "{}", "cpu", queues, 1); /* an agent to be rung */
    send_cmd(&beat);
    freeReplyObject(receive());
    freeReplyObject(ASK("SCRIPT", "LOAD", sl_script_get(SL_SCRIPT_CLAIM)->text));
    freeReplyObject(ASK("SCRIPT", "LOAD", sl_script_get(SL_SCRIPT_FINISH)->text));
    fill(q, PAIRS * (ROUNDS + 1), "medium");
    fill_bare(PAIRS * (ROUNDS + 1));
    pairs(true, PAIRS, true, NULL);
    pairs(false, PAIRS, true, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        ours += pairs(true, PAIRS, true, NULL);
        bare += pairs(false, PAIRS, true, NULL);
    }
    printf("# a pair costs Redis %.1f us, the bare one %.1f us: %.0f %% of its rate\n",
           ours / ROUNDS / PAIRS * 1e6, bare / ROUNDS / PAIRS * 1e6, bare / ours * 100);
    bad += check(bare / ours >= 0.6, "claim and finish at 60 % of the bare pair's rate or more");

    fill(q, 3000, "high");
    pairs(true, 1000, false, &few); /* warm */
    pairs(true, 1000, false, &few);
    for (int i = 0; i < 1000; i++) {
        char from[16];
        snprintf(from, sizeof from, "%d", i);
        freeReplyObject(ASK("EVAL", "for i = 1, 1000 do local n = ARGV[1] * 1000 + i redis.call('ZADD', KEYS[1], "
                                    "string.format('%.0f', 3 * 2^51 + n * 2^20), 'waiting-' .. n) "
                                    "redis.call('ZADD', KEYS[2], n, 'waiting-' .. n) end",
                            "2", "{softlaunch}:ready:default:cpu", "{softlaunch}:runs", from));
    }
    pairs(true, 1000, false, &many);
    printf("# a claim costs %.1f us in front of %d waiting runs, %.1f us in front of a million more\n",
           few / 1000 * 1e6, 1000, many / 1000 * 1e6);
    bad += check(many < 2 * few, "a claim in front of a million runs costs at most twice as much");

    redisReaderFree(reader);
    close(sock);
    sl_queue_free(q);
    private_redis_stop(&server);
    return bad ? 1 : 0;
}

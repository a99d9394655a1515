/* `softlaunch doctor`: whether this machine and what it talks to are fit for runs. It changes nothing. */
#include "agent/device_test.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/proc.h"
#include "cli/api.h"
#include "cli/cli.h"
#include "queue/redis.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKEW_WARN_US INT64_C(1000000)
#define TRIP_WARN_US INT64_C(50000)
#define DISK_ERROR_BYTES (INT64_C(1) << 30)
#define DISK_WARN_BYTES (INT64_C(10) << 30)
#define INFO_MAX (1u << 20)

enum level { OK, WARN, ERROR };

/* Adds a line to checks. advice: what to do; NULL or "" when nothing. */
__attribute__((format(printf, 5, 6))) static void say(json_t *checks, enum level level, const char *what,
                                                      const char *advice, const char *fmt, ...)
{
    static const char *const names[] = {"ok", "warn", "error"};
    char found[SL_ERR_MSG_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(found, sizeof found, fmt, ap);
    va_end(ap);
    json_array_append_new(checks, json_pack("{s:s, s:s, s:s, s:s}", "level", names[level], "what", what, "found",
                                            found, "do", advice ? advice : ""));
}

/* ---- Redis ---------------------------------------------------------------------------------------------- */

/* The reply as text; SL_DATA when it has none. Words may not be more than 4. */
static int ask(struct sl_redis *r, const char *const *words, struct sl_buf *ret_text, struct sl_err *err)
{
    redisReply *reply, *part;
    struct sl_cmd c;
    int rc;

    sl_cmd_init(&c);
    for (; *words; words++)
        sl_cmd_add(&c, *words);
    rc = sl_redis_call(r, &c, 0, &reply, err);
    sl_cmd_release(&c);
    if (rc)
        return rc;
    part = reply->type == REDIS_REPLY_ARRAY && reply->elements ? reply->element[reply->elements - 1] : reply;
    rc = part->str ? sl_buf_add(ret_text, part->str, (size_t)part->len)
                   : sl_err_set(err, SL_DATA, "Redis's answer has no text");
    freeReplyObject(reply);
    return rc;
}

/* The value of "name:" in what INFO said; "" when it is not there. */
static const char *info(const struct sl_buf *text, const char *name, char ret_value[64])
{
    size_t n = strlen(name);

    *ret_value = 0;
    for (const char *p = text->p; p; p = strchr(p, '\n')) {
        p += *p == '\n';
        if (!strncmp(p, name, n) && p[n] == ':') {
            snprintf(ret_value, 64, "%.*s", (int)strcspn(p + n + 1, "\r\n"), p + n + 1);
            break;
        }
    }
    return ret_value;
}

static void check_version(json_t *checks, const struct sl_buf *text)
{
    char v[64];
    int major = atoi(info(text, "redis_version", v));

    say(checks, major >= 7 ? OK : ERROR, "redis version", major >= 7 ? "" : "use Redis 7 or later", "%s",
        *v ? v : "unknown");
}

/* fsync: appendfsync's value, or "" when we may not ask. */
static void check_durability(json_t *checks, const struct sl_buf *text, const char *fsync)
{
    char v[64];

    if (strcmp(info(text, "aof_enabled", v), "1") != 0)
        say(checks, ERROR, "redis durability",
            "set appendonly yes and appendfsync everysec, or always",
            "appendonly is off: when Redis stops, runs that were acknowledged are lost");
    else if (!strcmp(info(text, "aof_last_write_status", v), "err"))
        say(checks, ERROR, "redis durability", "look for a full disk on Redis's machine",
            "Redis cannot write its append-only file");
    else if (!*fsync)
        say(checks, WARN, "redis durability", "see to it that appendfsync is everysec or always",
            "appendonly is on; we may not ask for appendfsync");
    else if (!strcmp(fsync, "no"))
        say(checks, ERROR, "redis durability", "set appendfsync everysec, or always",
            "appendfsync no: a power cut loses what the kernel had not written, 30 s or more");
    else
        say(checks, OK, "redis durability", "", "appendonly yes, appendfsync %s: %s", fsync,
            strcmp(fsync, "always") ? "a power cut costs about the last second" : "a power cut costs nothing");
}

static void check_memory(json_t *checks, const struct sl_buf *text)
{
    char v[64];

    if (strcmp(info(text, "maxmemory_policy", v), "noeviction") != 0)
        say(checks, ERROR, "redis eviction", "set maxmemory-policy noeviction",
            "%s: when memory is short, Redis would delete runs", *v ? v : "unknown");
    else
        say(checks, OK, "redis eviction", "", "noeviction");
    double used = atof(info(text, "used_memory", v)), most = atof(info(text, "maxmemory", v));
    if (most > 0 && used > 0.9 * most)
        say(checks, WARN, "redis memory", "raise maxmemory; when it is full nothing more can be enqueued",
            "%.0f of %.0f MiB in use", used / 1048576, most / 1048576);
    else
        say(checks, OK, "redis memory", "", "%.0f MiB in use", used / 1048576);
}

static void check_replicas(json_t *checks, const struct sl_buf *text)
{
    char v[64];
    int n = atoi(info(text, "connected_slaves", v));

    if (n)
        say(checks, OK, "redis replicas", "", "%d connected; replication is asynchronous: enqueue with "
            "--wait-replicas where no failover may lose a run", n);
    else
        say(checks, OK, "redis replicas", "", "none: while Redis is away, nothing new starts");
}

static void check_clock(json_t *checks, struct sl_redis *r)
{
    struct sl_err err = SL_ERR_INIT;
    redisReply *reply;
    struct sl_cmd c;
    int64_t before = sl_now_us(), trip, skew;
    int rc;

    sl_cmd_init(&c);
    sl_cmd_add(&c, "TIME");
    rc = sl_redis_call(r, &c, 0, &reply, &err);
    sl_cmd_release(&c);
    trip = sl_now_us() - before;
    if (rc || reply->type != REDIS_REPLY_ARRAY || reply->elements != 2) {
        say(checks, WARN, "clock", "", "Redis does not tell its time: %s", err.msg);
        if (!rc)
            freeReplyObject(reply);
        return;
    }
    skew = atoll(reply->element[0]->str) * 1000000 + atoll(reply->element[1]->str) - before - trip / 2;
    freeReplyObject(reply);
    say(checks, llabs(skew) > SKEW_WARN_US ? WARN : OK, "clock",
        llabs(skew) > SKEW_WARN_US ? "let both machines follow the same time server (leases use Redis's clock only)" : "",
        "%.3f s from Redis's", (double)skew / 1e6);
    say(checks, trip > TRIP_WARN_US ? WARN : OK, "redis round trip",
        trip > TRIP_WARN_US ? "let agents and Redis be near each other" : "", "%.1f ms", (double)trip / 1e3);
}

static void check_redis(json_t *checks, const char *text)
{
    static const char *const all[] = {"INFO", NULL}, *const policy[] = {"CONFIG", "GET", "appendfsync", NULL};
    struct sl_redis_url *url = calloc(1, sizeof *url);
    struct sl_err err = SL_ERR_INIT, refused = SL_ERR_INIT;
    struct sl_redis *r = NULL;
    struct sl_buf facts, fsync;
    int rc = url ? sl_redis_url_parse(text, url, &err) : sl_err_set(&err, SL_NOMEM, "out of memory");

    sl_buf_init(&facts, INFO_MAX);
    sl_buf_init(&fsync, 64);
    if (!rc)
        rc = sl_redis_new(url, &r, &err);
    if (!rc)
        rc = ask(r, all, &facts, &err);
    if (rc == SL_DENIED && strstr(err.msg, "NOPERM")) {
        say(checks, WARN, "redis", "for its settings, look with a user that has +info and +config|get",
            "connected; this user may not ask for more");
        check_clock(checks, r);
    } else if (rc) {
        say(checks, ERROR, "redis", "check the URL, that Redis runs, and that this machine reaches it", "%s", err.msg);
    } else {
        say(checks, OK, "redis", "", "connected to a primary");
        ask(r, policy, &fsync, &refused);
        check_version(checks, &facts);
        check_durability(checks, &facts, fsync.p);
        check_memory(checks, &facts);
        check_replicas(checks, &facts);
        check_clock(checks, r);
    }
    sl_buf_release(&facts);
    sl_buf_release(&fsync);
    sl_redis_free(r);
    free(url);
}

/* ---- disk, server, device --------------------------------------------------------------------------------- */

static void check_disk(json_t *checks, const char *dir)
{
    struct statvfs s;
    int64_t bytes;

    if (access(dir, W_OK | X_OK) || statvfs(dir, &s)) {
        say(checks, ERROR, "disk", "make the folder, and let the agent's user write there", "%s: %s", dir,
            strerror(errno));
        return;
    }
    bytes = (int64_t)s.f_bavail * (int64_t)s.f_frsize;
    say(checks, bytes < DISK_ERROR_BYTES ? ERROR : bytes < DISK_WARN_BYTES ? WARN : OK, "disk",
        bytes < DISK_WARN_BYTES ? "free space there, or name another --work-dir: models, data and checkpoints go there"
                                : "",
        "%s: %.1f GiB free", dir, (double)bytes / (1 << 30));
}

static void check_server(json_t *checks, const char *server, const char *token_file)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_api *api = NULL;
    int rc = sl_api_open(server, token_file, &api, &err);

    if (!rc)
        rc = sl_api_call(api, "GET", "/api/v1/artifacts", NULL, NULL, NULL, &err);
    if (rc)
        say(checks, ERROR, "server",
            rc == SL_DENIED ? "give the token that the server was started with"
                            : "check the URL, that `softlaunch serve` runs, and that this machine reaches it",
            "%s", err.msg);
    else
        say(checks, OK, "server", "", "%s answers and takes our token", sl_api_server(api));
    sl_api_free(api);
}

static void check_device(json_t *checks, const char *device)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    struct sl_err err = SL_ERR_INIT;
    json_t *o = NULL;
    int rc = sl_self_dir(dir, sizeof dir, &err);

    if (!rc)
        rc = sl_path(path, &err, "%s/softlaunch-worker", dir);
    if (!rc)
        rc = sl_device_test(path, device, NULL, &o, &err);
    if (rc == SL_DEVICE)
        say(checks, ERROR, "device", "take this device out of use, or see what the worker says above", "%s", err.msg);
    else if (rc)
        say(checks, ERROR, "device", "install softlaunch-worker beside softlaunch", "%s", err.msg);
    else if (!sl_json_bool(o, "ok", false))
        say(checks, ERROR, "device", "do not run an agent on this device until it is repaired", "%s",
            sl_json_str(o, "msg", "?"));
    else
        say(checks, OK, "device", "", "%s (%s) multiplies right", sl_json_str(o, "device", "?"),
            sl_json_str(o, "kernel", "?"));
    json_decref(o);
}

/* ---- the command ------------------------------------------------------------------------------------------ */

static bool any_error(const json_t *checks)
{
    const json_t *c;
    size_t i;

    json_array_foreach(checks, i, c)
        if (!strcmp(sl_json_str(c, "level", ""), "error"))
            return true;
    return false;
}

static void print(const json_t *checks)
{
    const json_t *c;
    size_t i;

    json_array_foreach(checks, i, c) {
        const char *advice = sl_json_str(c, "do", "");
        printf("%-5s  %-16s  %s\n", sl_json_str(c, "level", ""), sl_json_str(c, "what", ""),
               sl_json_str(c, "found", ""));
        if (*advice)
            printf("%25s%s\n", "-> ", advice);
    }
}

int cmd_doctor(int argc, char **argv)
{
    struct cli_server server = {.url = getenv("SOFTLAUNCH_SERVER")};
    const char *redis = getenv("SOFTLAUNCH_REDIS"), *dir = NULL, *device = NULL;
    bool json = false, no_device = false, bad;
    const struct cli_option options[] = {
        {"redis", 0, CLI_TEXT, &redis, "URL", "Redis and its settings (SOFTLAUNCH_REDIS)", 0, 0},
        {"server", 0, CLI_TEXT, &server.url, "URL", "the server and its store (SOFTLAUNCH_SERVER)", 0, 0},
        {"token-file", 0, CLI_TEXT, &server.token_file, "FILE", "the server's token (SOFTLAUNCH_TOKEN)", 0, 0},
        {"work-dir", 0, CLI_TEXT, &dir, "DIR", "an agent's work folder: room and permissions", 0, 0},
        {"device", 0, CLI_TEXT, &device, "D",
         "auto, cpu, cuda or cuda:N: the worker multiplies on it, checked against\nthe CPU (auto)", 0, 0},
        {"no-device", 0, CLI_FLAG, &no_device, NULL, "leave the device out", 0, 0},
        {"json", 0, CLI_FLAG, &json, NULL,
         "{\"ok\": ..., \"checks\": [{\"level\", \"what\", \"found\", \"do\"}]}", 0, 0},
        CLI_OPTIONS_END,
    };
    const struct cli_usage usage = {
        .name = "doctor",
        .forms = (const char *const[]){"[OPTION ...]", NULL},
        .options = options,
        .more = "A line for each thing looked at: ok, warn or error, and what to do about it. Exit status 1 when\n"
                "there is an error. What is not named is not looked at.",
    };
    int at = cli_parse(&usage, argc, argv);
    json_t *checks;

    if (at < 0)
        return cli_usage_status(at);
    checks = json_array();
    if (redis && *redis)
        check_redis(checks, redis);
    if (server.url && *server.url)
        check_server(checks, server.url, server.token_file);
    if (dir)
        check_disk(checks, dir);
    if (!no_device)
        check_device(checks, device);
    bad = any_error(checks);
    if (json) {
        json_t *o = json_pack("{s:b, s:O}", "ok", !bad, "checks", checks);
        json_dumpf(o, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(o);
    } else {
        print(checks);
    }
    json_decref(checks);
    return bad;
}

/* How long a script holds Redis: each one, at the most that one call may bring it, with a million runs waiting. None
 * may come into Redis's slow log at 2 ms. That log goes by the wall clock, so Redis runs at real-time priority, or as near
 * to it as the machine lets us, and what a hypervisor took is told: where neither could be kept away, a slow script
 * is not judged. Prints TAP, writes reports/queue_scripts.json under SL_BUILD; exits 1 when the promise is broken. */
#include "agent/report.h"
#include "base/json.h"
#include "queue/inner.h"
#include "tests/unit/private_redis.h"
#include <sched.h>
#include <sys/resource.h>

#define CALLS 200     /* of each script */
#define PAIRS 5000    /* claims and finishes */
#define GATED 200     /* entries that a gate moves at once */
#define WIDE 10       /* queues that one pass of the reaper looks at */
#define SLOW_US 2000
#define CPU "cpu"

static struct private_redis server;
static struct sl_queue *q;
static struct sl_err err = SL_ERR_INIT;

static void die(const char *what)
{
    printf("not ok - %s: %s\n", what, err.msg);
    private_redis_stop(&server);
    exit(1);
}

static void must(int rc, const char *what)
{
    if (rc)
        die(what);
}

/* Sends a command and releases it. */
static redisReply *ask(struct sl_cmd *c, const char *what)
{
    redisReply *r;

    must(sl_queue_call(q, c, 0, &r, &err), what);
    return r;
}

static void tell(struct sl_cmd *c, const char *what)
{
    freeReplyObject(ask(c, what));
}

/* A plain command, its words apart by single blanks. */
static redisReply *plain(const char *words)
{
    char text[2048], *save = NULL;
    struct sl_cmd c;

    snprintf(text, sizeof text, "%s", words);
    sl_cmd_init(&c);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save))
        sl_cmd_add(&c, w);
    return ask(&c, words);
}

static void eval(const char *lua, const char *a, const char *b)
{
    struct sl_cmd c;

    sl_cmd_init(&c);
    for (const char *const *w = (const char *const[]){"EVAL", lua, "1", SL_QUEUE_TAG, a, b, NULL}; *w; w++)
        sl_cmd_add(&c, *w);
    tell(&c, "a fixture");
}

static void enqueue(const char *project, const char *queue, const char *priority, char ret_run[SL_ID_HEX + 1])
{
    static const char form[] =
        "{\"api\":\"softlaunch/v1\",\"name\":\"no-op\",\"project\":\"%s\",\"queue\":\"%s\",\"priority\":\"%s\","
        "\"model\":\"model:latest\",\"datasets\":{\"train\":[\"data:latest\"]},\"config\":{\"model\":{\"task_templates\":[]}},"
        "\"outputs\":{\"artifact\":\"result\"}}";
    char text[1024];

    snprintf(text, sizeof text, form, project, queue, priority);
    json_t *spec = json_loads(text, 0, NULL);
    must(sl_queue_enqueue(q, spec, NULL, ret_run, NULL, &err), "enqueue");
    json_decref(spec);
}

static void fill(const char *project, const char *queue, int n)
{
    char run[SL_ID_HEX + 1];

    for (int i = 0; i < n; i++)
        enqueue(project, queue, "high", run);
}

static void claim(const char *queue, int64_t ttl_ms, char ret_run[SL_ID_HEX + 1], char ret_lease[SL_ID_HEX + 1])
{
    struct sl_cmd c;

    sl_random_id(ret_lease);
    sl_queue_cmd_claim(&c, ret_lease, "agent-1", ttl_ms, CPU, &queue, 1);
    redisReply *r = ask(&c, "claim");
    if (r->type != REDIS_REPLY_ARRAY)
        die("a claim got nothing");
    snprintf(ret_run, SL_ID_HEX + 1, "%s", r->element[0]->str);
    freeReplyObject(r);
}

static void finish(const char *run, const char *lease)
{
    json_t *out = json_loads("[{\"output\":\"prompts\",\"artifact\":\"result\",\"number\":1,\"manifest\":\"m\",\"bytes\":1}]", 0, NULL);
    json_t *made;
    bool new;

    must(sl_queue_finish(q, run, lease, out, NULL, &made, &new, &err), "finish");
    json_decref(made);
    must(sl_queue_ack(q, run, out, &err), "ack");
    json_decref(out);
}

static void beat(const char *const *queues, int n)
{
    struct sl_cmd c;

    sl_queue_cmd_heartbeat(&c, "agent-1", "{}", CPU, queues, n);
    tell(&c, "heartbeat");
}

static void set(bool project, const char *name, const char *format, int n)
{
    char text[64];

    snprintf(text, sizeof text, format, n);
    json_t *changes = json_loads(text, 0, NULL);
    must((project ? sl_queue_set_project : sl_queue_set_queue)(q, name, changes, &err), "a limit");
    json_decref(changes);
}

/* Until the reaper has nothing more to do, with all that it looks at once a second looked at. */
static void reap(void)
{
    struct sl_reaped r = {.more = true};

    usleep(1000000);
    for (int i = 0; i < 10000 && r.more; i++)
        must(sl_queue_reap(q, false, &r, &err), "reap");
}

/* ---- what is called -------------------------------------------------------------------------- */

static void pairs(void)
{
    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1];

    for (int i = 0; i < PAIRS; i++) {
        claim("default", 30000, run, lease);
        finish(run, lease);
    }
}

/* What an agent says of a run, in batches as large as it sends them, and what is read of it. */
static void one_run(void)
{
    static char line[5200];

    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1], digest[65];
    struct sl_cmd c;
    json_t *found;

    snprintf(line, sizeof line, "{\"msg\":\"%0*d\"}", SL_REPORT_BATCH_BYTES / SL_QUEUE_BATCH_MAX - 16, 0);
    claim("default", 3600000, run, lease);
    for (int batch = 1; batch <= CALLS; batch++) {
        const bool large = batch % 2;
        if (batch > 20 && batch % 10)
            line[100] = 0, strcpy(line + 98, "\"}");
        sl_queue_cmd_append(&c, run, lease, batch, "training", batch, 1000, "{\"loss\":1.25}");
        for (int i = 0; i < (large ? SL_QUEUE_BATCH_MAX : 10); i++)
            sl_queue_cmd_append_event(&c, "log", line);
        tell(&c, "append");
        sl_queue_cmd_renew(&c, run, lease, 3600000);
        tell(&c, "renew");
        snprintf(digest, sizeof digest, "%064d", batch);
        sl_queue_cmd_checkpoint(&c, run, lease, digest, batch);
        tell(&c, "checkpoint");
        must(sl_queue_events(q, run, "0", SL_QUEUE_EVENTS_MAX, 0, &found, &err), "events");
        json_decref(found);
        must(sl_queue_show(q, run, &found, &err), "show");
        json_decref(found);
    }
    finish(run, lease);
}

/* With the million in line: enqueue, move, cancel, list, queues; and a limit that comes and goes, for which the line is put
 * aside and taken back. */
static void in_line(void)
{
    char run[SL_ID_HEX + 1], from[24];
    const char *state;
    json_t *found;

    for (int i = 0; i < CALLS; i++) {
        enqueue("one", "default", "low", run);
        snprintf(from, sizeof from, "%d", 1000000 - i * (1000000 / CALLS));
        must(sl_queue_move(q, run, NULL, 0, &err), "move");
        must(sl_queue_cancel(q, run, &state, &err), "cancel");
        must(sl_queue_list(q, from, SL_QUEUE_PAGE_MAX, "dead", NULL, NULL, &found, &err), "list");
        json_decref(found);
        must(sl_queue_list(q, NULL, SL_QUEUE_PAGE_MAX, NULL, NULL, NULL, &found, &err), "list");
        must(sl_queue_waiting_for(q, json_object_get(found, "runs"), &err), "waiting_for");
        json_decref(found);
        must(sl_queue_queues(q, &found, &err), "queues");
        json_decref(found);
        must(sl_queue_projects(q, &found, &err), "projects");
        json_decref(found);
        must(sl_queue_reap(q, false, NULL, &err), "reap");
        if (i % 10 == 0)
            set(false, "default", "{\"max_running\":%d}", i % 20 < 10 ? 1 : 0);
    }
}

/* How runs stop: by failing, by being given back, by leases that run out, as many as a pass takes; and back in line. */
static void stops(void)
{
    const struct sl_failure crash = {.kind = "crash", .cause = "exit", .msg = "exit status 1", .exit_code = 1, .exit_signal = -1};
    char run[SL_ID_HEX + 1], lease[SL_ID_HEX + 1];
    struct sl_cmd c;
    int replicas;

    for (int i = 0; i < CALLS; i++) {
        claim("default", 30000, run, lease);
        sl_queue_cmd_fail(&c, run, lease, &crash);
        tell(&c, "fail");
        claim("default", 30000, run, lease);
        sl_queue_cmd_release(&c, run, lease, "preempted");
        tell(&c, "release");
        must(sl_queue_sync(q, run, 0, 1, &replicas, &err), "sync");
        must(sl_queue_refund(q, run, "one", 1, &err), "refund");
        must(sl_queue_set_agent(q, "agent-1", SL_AGENT_ACTIVE, &err), "set agent");
        beat((const char *const[]){"default"}, 1);
    }
    for (int i = 0; i < CALLS * SL_QUEUE_REAP_MAX / 4; i++)
        claim("default", 1, run, lease);
    reap();
}

/* Gates that let through or take back as much as they do at once: a project's, a queue's, ten queues' in one pass. */
static void gates(void)
{
    char run[SL_ID_HEX + 1], queue[32];

    fill("crowd", "crowd", 3 * GATED);
    beat((const char *const[]){"crowd"}, 1);
    for (int i = 0; i < 10; i++) {
        set(true, "crowd", "{\"max_running\":%d}", i % 2 ? 1 : GATED - 1);
        reap();
        set(false, "crowd", "{\"max_running\":%d}", i % 2 ? 1 : GATED - 1);
        reap();
    }
    for (int i = 0; i < 2 * WIDE; i++) {
        snprintf(queue, sizeof queue, "wide-%d", i);
        enqueue("wide", queue, "high", run);
        eval("for i = 1, 5000 do redis.call('ZADD', KEYS[1] .. ':ready:' .. ARGV[1] .. ':cpu', 3 * 2^51 + i * 2^20, "
             "'wide-' .. ARGV[1] .. i) end", queue, "");
        beat((const char *const[]){queue}, 1);
    }
    for (int round = 0; round < 3; round++) {
        /* Each has a limit, and all of it is free: every pass lets as much through in all of them. */
        for (int i = 0; i < 2 * WIDE; i++) {
            snprintf(queue, sizeof queue, "wide-%d", i);
            set(false, queue, "{\"max_running\":%d}", 1);
            eval("redis.call('HSET', KEYS[1] .. ':queue:' .. ARGV[1], 'max_running', ARGV[2])", queue, "180");
        }
        reap();
        for (int i = 0; i < 2 * WIDE; i++) {
            snprintf(queue, sizeof queue, "wide-%d", i);
            eval("redis.call('HSET', KEYS[1] .. ':queue:' .. ARGV[1], 'max_running', ARGV[2])", queue, "1");
        }
        reap();
    }
}

/* As many names as one call asks for, with as many classes as a queue may have; as many agents as are listed; as many changes and
 * ended runs as are read at once. */
static int none(void *arg, const char *run, int64_t ended_ms, bool waits, struct sl_err *e)
{
    (void)arg, (void)run, (void)ended_ms, (void)waits, (void)e;
    return 0;
}
static void lists(void)
{
    json_t *found, *taken = NULL;
    int n;

    eval("local classes = {} for i = 1, 32 do classes[i] = 'cpu+label-' .. i end "
         "for i = 1, 200 do local name = 'many-' .. i redis.call('ZADD', KEYS[1] .. ':queues', 0, name) "
         "redis.call('HSET', KEYS[1] .. ':queue:' .. name, 'classes', table.concat(classes, ' ')) "
         "for _, c in ipairs(classes) do redis.call('ZADD', KEYS[1] .. ':ready:' .. name .. ':' .. c, 1, 'x' .. i) end end", "", "");
    eval("local t = redis.call('TIME')[1] * 1000 for i = 1, 1000 do redis.call('HSET', KEYS[1] .. ':agents', 'many-' .. i, "
         "'{\"slots\":4,\"version\":\"0.1.0\",\"host\":\"a-machine-of-many\",\"gpus\":[{\"name\":\"H200\",\"memory\":150000}]}') "
         "redis.call('ZADD', KEYS[1] .. ':agents_seen', t, 'many-' .. i) end", "", "");
    for (int i = 0; i < CALLS; i++) {
        must(sl_queue_changes(q, taken, &found, &err), "changes");
        json_decref(taken);
        taken = found;
        if (i % 10)
            continue;
        must(sl_queue_queues(q, &found, &err), "queues");
        json_decref(found);
        must(sl_queue_agents(q, &found, &err), "agents");
        json_decref(found);
        must(sl_queue_ended_since(q, 0, 0, i, 100, none, NULL, &n, &err), "ended");
    }
    json_decref(taken);
    reap();
    must(sl_queue_ended(q, 0, CALLS, &found, &err), "ended");
    for (size_t i = 0; i < json_array_size(found); i++)
        must(sl_queue_forget(q, json_string_value(json_array_get(found, i)), &err), "forget");
    json_decref(found);
}

/* ---- the verdict ----------------------------------------------------------------------------- */

/* As near to a processor of its own as Redis can be brought. */
static const char *prefer(pid_t pid)
{
    if (!sched_setscheduler(pid, SCHED_RR, &(struct sched_param){.sched_priority = 1}))
        return "real-time";
    if (!setpriority(PRIO_PROCESS, (id_t)pid, -20))
        return "nice -20";
    return "ordinary";
}

/* Ticks that a hypervisor gave to others; -1: not known. */
static long long stolen(void)
{
    long long steal = -1;
    FILE *f = fopen("/proc/stat", "r");

    if (f && fscanf(f, "cpu %*d %*d %*d %*d %*d %*d %*d %lld", &steal) != 1)
        steal = -1;
    if (f)
        fclose(f);
    return steal;
}

/* A script's number, by what its EVALSHA names; SL_SCRIPT_COUNT: none of ours. */
static int script_of(const redisReply *argv)
{
    int i = 0;

    while (i < SL_SCRIPT_COUNT && (argv->elements < 2 || strcasecmp(argv->element[0]->str, "EVALSHA") ||
                                   strcasecmp(sl_script_get((enum sl_script_id)i)->sha1, argv->element[1]->str)))
        i++;
    return i;
}

/* Longest and count over the limit by script; the last one: commands that are no script. */
static struct {
    int n;
    long long longest_us;
} slow[SL_SCRIPT_COUNT + 1];
static int kept, unjudged; /* parts */

/* Does one part, and takes what it left in the slow log. false: a script was slow, and the processor was not Redis's own
 * all the time. */
static bool part(const char *name, void (*f)(void), bool alone)
{
    const long long before = stolen();
    int scripts = 0;

    freeReplyObject(plain("SLOWLOG RESET"));
    f();
    const long long lost = stolen() - before;
    redisReply *r = plain("SLOWLOG GET 100000");
    for (size_t i = 0; i < r->elements; i++) {
        const redisReply *argv = r->element[i]->element[3];
        const long long us = r->element[i]->element[2]->integer;
        const int at = script_of(argv);
        if (!strcasecmp(argv->element[0]->str, "EVAL"))
            continue; /* a fixture */
        slow[at].n++;
        slow[at].longest_us = us > slow[at].longest_us ? us : slow[at].longest_us;
        scripts += at < SL_SCRIPT_COUNT;
        if (at < SL_SCRIPT_COUNT)
            printf("# script %d (scripts.h): %lld us\n", at, us);
    }
    freeReplyObject(r);
    printf("# %s: %d scripts over %d us, %lld ticks stolen\n", name, scripts, SLOW_US, lost);
    fflush(stdout);
    kept += !scripts;
    return !scripts || (alone && !lost);
}

static void write_report(const char *priority, long long lost)
{
    const char *build = getenv("SL_BUILD");
    char path[512];
    json_t *by = json_array();

    for (int i = 0; i <= SL_SCRIPT_COUNT; i++)
        if (slow[i].n)
            json_array_append_new(by, json_pack("{s:i, s:i, s:I}", "script", i, "times", slow[i].n, "longest_us", slow[i].longest_us));
    json_t *j = json_pack("{s:s, s:I, s:i, s:i, s:i, s:o}", "redis_priority", priority, "stolen_ticks", lost, "limit_us", SLOW_US,
                          "parts_kept", kept, "parts_not_judged", unjudged, "slow", by);
    snprintf(path, sizeof path, "%s/reports", build ? build : "build");
    must(sl_mkdirs(path, &err), path);
    strncat(path, "/queue_scripts.json", sizeof path - strlen(path) - 1);
    if (json_dump_file(j, path, JSON_INDENT(1)))
        die(path);
    json_decref(j);
}

int main(void)
{
    static const struct {
        const char *name;
        void (*f)(void);
    } parts[] = {{"claim and finish", pairs}, {"one run", one_run}, {"in line", in_line}, {"stops", stops}, {"gates", gates}, {"lists", lists}};
    const int n = sizeof parts / sizeof *parts;

    must(private_redis_start(&server) || sl_queue_new(server.url, &q, &err), "a private Redis");
    const char *priority = prefer(server.pid);
    freeReplyObject(plain("CONFIG SET appendfsync everysec slowlog-log-slower-than 2000 slowlog-max-len 100000"));
    beat((const char *const[]){"default"}, 1);
    fill("one", "default", PAIRS / 2);
    fill("two", "default", PAIRS / 2 + CALLS * (SL_QUEUE_REAP_MAX / 4 + 3));
    for (int i = 0; i < 1000; i++) {
        char from[16];
        snprintf(from, sizeof from, "%d", i);
        eval("for i = 1, 1000 do local n = ARGV[1] * 1000 + i redis.call('ZADD', KEYS[1] .. ':ready:default:cpu', "
             "string.format('%.0f', 3 * 2^51 + n * 2^20), 'waiting-' .. n) redis.call('ZADD', KEYS[1] .. ':runs', n, 'waiting-' .. n) end",
             from, "");
    }
    const long long before = stolen();
    for (int i = 0; i < n; i++) {
        bool judged = false;
        for (int again = 0; again < (parts[i].f == in_line ? 4 : 1) && !judged; again++)
            judged = part(parts[i].name, parts[i].f, !strcmp(priority, "real-time"));
        unjudged += !judged;
    }
    const long long lost = stolen() - before;
    printf("# Redis at %s priority, %lld ticks stolen\n", priority, lost);
    write_report(priority, lost);
    sl_queue_free(q);
    private_redis_stop(&server);
    if (kept + unjudged < n) {
        printf("not ok - a script took 2 ms\n");
        return 1;
    }
    printf("ok - no script took 2 ms%s\n", unjudged ? " # SKIP somewhere the machine was too busy to tell" : "");
    return 0;
}

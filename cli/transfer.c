/* `softlaunch transfer fetch|push --plan FILE`: what an agent execs for each fetch and upload, so
 * that its loop never touches HTTP or hashing. artifacts/plan.h has the plans, base/wire.h the
 * events: `progress`, then one `result` with the state, cause and message, and "resolved" (fetch)
 * or "manifests" and "reply" (push). */
#include "artifacts/plan.h"
#include "artifacts/web.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/wire.h"
#include "cli/cli.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRESS_EVERY_US 250000

struct transfer {
    const char *phase; /* "fetch" or "push" */
    int events_fd;
    struct sl_control *control;
    bool preempted, cancelled;
    int64_t done, total, sent_us;
};

static void send_progress(struct transfer *t)
{
    t->sent_us = sl_boot_us();
    sl_wire_send(t->events_fd,
                 json_pack("{s:s, s:s, s:I, s:I}", "ev", "progress", "phase", t->phase, "done",
                           (json_int_t)t->done, "total",
                           (json_int_t)(t->total > t->done ? t->total : t->done)),
                 NULL);
}

static void on_expect(void *arg, int64_t delta_bytes)
{
    struct transfer *t = arg;
    t->total += delta_bytes;
}

static void on_progress(void *arg, int64_t delta_bytes)
{
    struct transfer *t = arg;
    t->done += delta_bytes;
    if (sl_boot_us() - t->sent_us >= PROGRESS_EVERY_US)
        send_progress(t);
}

/* Inputs are of no use to a run that is being preempted; its checkpoint's upload is what preemption
 * waits for. */
static bool on_stop(void *arg)
{
    struct transfer *t = arg;
    enum sl_wire_want want = sl_control_take(t->control);
    t->cancelled = t->cancelled || want == SL_WANT_CANCEL;
    t->preempted = t->preempted || (want == SL_WANT_PREEMPT && strcmp(t->phase, "fetch") == 0);
    return t->cancelled || t->preempted;
}

static int finish(struct transfer *t, int rc, json_t *fields, struct sl_err *err)
{
    const char *state = "succeeded";
    int status = 0;
    if (rc == SL_CANCELLED && t->preempted && !t->cancelled)
        state = "preempted", status = SL_EXIT_PREEMPTED;
    else if (rc == SL_CANCELLED)
        state = "cancelled", status = SL_EXIT_CANCELLED;
    else if (rc)
        state = "failed", status = 1;
    send_progress(t);
    sl_web_redact(err->msg);
    json_t *event = json_pack("{s:s, s:s, s:s, s:s}", "ev", "result", "state", state, "cause",
                              rc ? sl_code_name(rc) : "", "msg", err->msg);
    if (!event) /* a message that is not UTF-8 */
        event = json_pack("{s:s, s:s, s:s}", "ev", "result", "state", state, "cause",
                          rc ? sl_code_name(rc) : "");
    if (fields)
        json_object_update(event, fields);
    if (sl_wire_send(t->events_fd, event, NULL) && status == 0)
        status = 1;
    if (status == 1)
        fprintf(stderr, "softlaunch transfer %s: %s\n", t->phase, err->msg);
    return status;
}

static int usage(void)
{
    fputs("usage: softlaunch transfer fetch|push --plan FILE [--events-fd N] [--control-fd N]\n",
          stderr);
    return 2;
}

int cmd_transfer(int argc, char **argv)
{
    static const struct option options[] = {
        {"plan", required_argument, NULL, 'p'},
        {"events-fd", required_argument, NULL, 'e'},
        {"control-fd", required_argument, NULL, 'c'},
        {NULL, 0, NULL, 0},
    };
    const char *plan_path = NULL, *token = getenv("SOFTLAUNCH_TOKEN");
    int control_fd = -1, c;
    struct transfer t = {.events_fd = 1};
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'p':
            plan_path = optarg;
            break;
        case 'e':
            t.events_fd = atoi(optarg);
            break;
        case 'c':
            control_fd = atoi(optarg);
            break;
        default:
            return usage();
        }
    if (optind + 1 != argc || !plan_path)
        return usage();
    bool fetch = strcmp(argv[optind], "fetch") == 0;
    if (!fetch && strcmp(argv[optind], "push") != 0)
        return usage();
    t.phase = fetch ? "fetch" : "push";

    struct sl_err err = SL_ERR_INIT;
    json_t *plan = NULL, *fields = NULL, *resolved = NULL;
    const struct sl_watch watch = {&t, on_expect, on_progress, on_stop};
    int rc = sl_control_new(control_fd, &t.control, &err);
    if (rc)
        return cli_fail(argv[0], &err);
    rc = sl_json_read(plan_path, SL_PLAN_MAX_BYTES, &plan, &err);
    if (rc == 0 && fetch) {
        rc = sl_plan_fetch(plan, token, &watch, &resolved, &err);
        if (rc == 0)
            fields = json_pack("{s:o}", "resolved", resolved);
    } else if (rc == 0) {
        rc = sl_plan_push(plan, token, &watch, &fields, &err);
    }
    int status = finish(&t, rc, fields, &err);
    json_decref(fields);
    json_decref(plan);
    sl_control_free(t.control);
    return status;
}

#include "agent/agent_inner.h"
#include "base/json.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/wire.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* ---- how a child ended
 * ------------------------------------------------------------------------------------- */

static void judge(const struct sl_slot *slot, int status, struct sl_ended *e)
{
    const char *state = sl_json_str(slot->result, "state", ""), *who = "transfer";
    char text[64];

    memset(e, 0, sizeof *e);
    if (slot->role == ROLE_WORK)
        who = "worker";
    sl_wait_text(status, text);
    snprintf(e->cause, sizeof e->cause, "%s", sl_json_str(slot->result, "cause", "crash"));
    snprintf(e->msg, sizeof e->msg, "%s", sl_json_str(slot->result, "msg", ""));
    sl_utf8_trim(e->msg);
    e->result = json_incref(slot->result);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !strcmp(state, "succeeded")) {
        e->ending = END_OK;
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == SL_EXIT_ABANDONED) {
        e->ending = END_ABANDONED;
    } else if (!strcmp(state, "preempted") ||
               (WIFEXITED(status) && WEXITSTATUS(status) == SL_EXIT_PREEMPTED)) {
        e->ending = END_PREEMPTED;
    } else if (!strcmp(state, "cancelled") ||
               (WIFEXITED(status) && WEXITSTATUS(status) == SL_EXIT_CANCELLED)) {
        e->ending = END_CANCELLED;
    } else {
        e->ending = END_FAILED;
        if (strcmp(state, "failed") != 0) { /* it did not get to say why */
            snprintf(e->cause, sizeof e->cause, "crash");
            snprintf(e->msg, sizeof e->msg, "the %s ended without a result: %s", who, text);
        }
    }
}

static void on_exited(void *arg, struct sl_child *child, int status)
{
    struct sl_agent *a = arg;
    struct sl_slot *slot = child == a->main.child ? &a->main : &a->pusher;
    char text[64];

    slot->child = NULL;
    sl_wait_text(status, text);
    sl_log(SL_DEBUG, sl_agent_run(a), "child ended: %s", text);
    json_decref(a->ended.result);
    judge(slot, status, &a->ended);
    sl_rundir_name_sources(&a->work.dir, &a->work.claim, a->ended.msg, sizeof a->ended.msg);
    json_decref(slot->result);
    slot->result = NULL;
    sl_agent_handle(a, slot == &a->main ? EV_CHILD : EV_PUSHED);
}

/* ---- what a child says
 * ------------------------------------------------------------------------------------- */

static void take_checkpoint(struct sl_agent *a, const json_t *event)
{
    const char *path = sl_json_str(event, "path", "");
    struct sl_work *w = &a->work;

    if (!*path || strlen(path) >= sizeof w->local)
        return;
    snprintf(w->local, sizeof w->local, "%s", path);
    snprintf(w->pending, sizeof w->pending, "%s", path);
    w->pending_step = sl_json_int(event, "step", 0);
    w->pending_mark = sl_report_mark(w->report);
    sl_agent_start_push(a);
}

static void on_event(void *arg, struct sl_child *child, const json_t *event)
{
    struct sl_agent *a = arg;
    struct sl_slot *slot = child == a->main.child ? &a->main : &a->pusher;
    const char *what = sl_json_str(event, "ev", "");

    if (!strcmp(what, "result")) {
        json_decref(slot->result);
        slot->result = json_incref((json_t *)(uintptr_t)event);
        return;
    }
    if (a->work.lost || !a->work.report)
        return;
    if (slot->role == ROLE_WORK && !strcmp(what, "checkpoint"))
        take_checkpoint(a, event);
    /* While results are published the lease may end at any moment: nothing more is written under
     * it. */
    if (slot->role == ROLE_WORK || slot->role == ROLE_FETCH)
        sl_report_event(a->work.report, event);
}

static void on_output(void *arg, struct sl_child *child, const char *line)
{
    struct sl_agent *a = arg;
    struct sl_slot *slot = child == a->main.child ? &a->main : &a->pusher;

    if (a->work.report && !a->work.lost && slot->role != ROLE_PUBLISH)
        sl_report_log(a->work.report, "info", "%s", line);
    else
        sl_log(SL_INFO, sl_agent_run(a), "%s", line);
}

/* ---- starting
 * ---------------------------------------------------------------------------------------------- */

static int start(struct sl_agent *a, struct sl_slot *slot, enum sl_role role,
                 const char *const *argv, struct sl_err *err)
{
    const struct sl_child_owner owner = {on_event, on_output, on_exited, a};
    char token[1024];
    const char *env[2] = {NULL, NULL};
    int rc;

    if (role != ROLE_WORK && a->config->token) {
        snprintf(token, sizeof token, "SOFTLAUNCH_TOKEN=%s", a->config->token);
        env[0] = token;
    }
    rc = sl_child_start(a->loop, argv, env, a->work.dir.path, &owner, &slot->child, err);
    explicit_bzero(token, sizeof token);
    if (rc)
        return rc;
    slot->role = role;
    sl_child_deadline(slot->child, a->work.deadline_us);
    return 0;
}

static int start_transfer(struct sl_agent *a, struct sl_slot *slot, enum sl_role role,
                          const char *plan, struct sl_err *err)
{
    const char *argv[] = {a->self,  "transfer", role == ROLE_FETCH ? "fetch" : "push",
                          "--plan", plan,       NULL};

    return start(a, slot, role, argv, err);
}

int sl_agent_start_fetch(struct sl_agent *a, struct sl_err *err)
{
    const struct sl_fetch_plan fetch = {a->config->server_url, a->cache, a->config->allow_paths,
                                        a->config->n_allow_paths};
    char plan[SL_PATH_MAX];
    int rc = sl_rundir_fetch_plan(&a->work.dir, &a->work.claim, &fetch, plan, err);

    return rc ? rc : start_transfer(a, &a->main, ROLE_FETCH, plan, err);
}

int sl_agent_start_work(struct sl_agent *a, struct sl_err *err)
{
    const char *argv[] = {a->worker, "train", "--run-dir", a->work.dir.path, NULL};
    int rc = sl_rundir_run_json(&a->work.dir, &a->work.claim, err);

    return rc ? rc : start(a, &a->main, ROLE_WORK, argv, err);
}

int sl_agent_start_publish(struct sl_agent *a, struct sl_err *err)
{
    char plan[SL_PATH_MAX];
    int rc =
        sl_rundir_publish_plan(&a->work.dir, &a->work.claim, a->work.lease, a->config->server_url,
                               sl_report_metrics(a->work.report), plan, err);

    return rc ? rc : start_transfer(a, &a->main, ROLE_PUBLISH, plan, err);
}

void sl_agent_start_push(struct sl_agent *a)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_work *w = &a->work;
    char plan[SL_PATH_MAX];
    int rc;

    if (a->pusher.child || !w->pending[0])
        return;
    rc = sl_rundir_checkpoint_plan(&w->dir, &w->claim, w->lease, a->config->server_url, w->pending,
                                   plan, &err);
    if (!rc)
        rc = start_transfer(a, &a->pusher, ROLE_CHECKPOINT, plan, &err);
    w->push_step = w->pending_step;
    w->push_mark = w->pending_mark;
    w->pending[0] = 0;
    if (rc)
        sl_report_log(w->report, "warn", "the checkpoint of step %lld was not uploaded: %s",
                      (long long)w->push_step, err.msg);
}

#include "agent/agent_inner.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/wire.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define FOREIGN_MAX 64 /* credentials of the agent's own that a worker does not get */
#define FOREIGN_BYTES 8192

/* ---- how a child ended
 * ------------------------------------------------------------------------------------- */

static void judge(const struct sl_held *held, int status, struct sl_ended *e)
{
    const char *state = sl_json_str(held->result, "state", ""), *who = "transfer";
    char text[64];

    memset(e, 0, sizeof *e);
    e->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    e->exit_signal = WIFSIGNALED(status) ? WTERMSIG(status) : -1;
    if (held->role == ROLE_WORK)
        who = "worker";
    sl_wait_text(status, text);
    snprintf(e->cause, sizeof e->cause, "%s", sl_json_str(held->result, "cause", "crash"));
    snprintf(e->msg, sizeof e->msg, "%s", sl_json_str(held->result, "msg", ""));
    sl_utf8_trim(e->msg);
    e->result = json_incref(held->result);
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
    struct sl_slot *s = arg;
    struct sl_held *held = child == s->main.child ? &s->main : &s->pusher;
    char text[64];

    held->child = NULL;
    sl_wait_text(status, text);
    sl_log(SL_DEBUG, sl_slot_run(s), "child ended: %s", text);
    json_decref(s->ended.result);
    judge(held, status, &s->ended);
    sl_rundir_name_sources(&s->work.dir, &s->work.claim, s->ended.msg, sizeof s->ended.msg);
    json_decref(held->result);
    held->result = NULL;
    sl_slot_handle(s, held == &s->main ? EV_CHILD : EV_PUSHED);
}

/* ---- what a child says
 * ------------------------------------------------------------------------------------- */

static void take_checkpoint(struct sl_slot *s, const json_t *event)
{
    const char *path = sl_json_str(event, "path", "");
    struct sl_work *w = &s->work;

    if (!*path || strlen(path) >= sizeof w->local)
        return;
    snprintf(w->local, sizeof w->local, "%s", path);
    snprintf(w->pending, sizeof w->pending, "%s", path);
    w->pending_step = sl_json_int(event, "step", 0);
    w->pending_mark = sl_report_mark(w->report);
    sl_slot_start_push(s);
}

static void on_event(void *arg, struct sl_child *child, const json_t *event)
{
    struct sl_slot *s = arg;
    struct sl_held *held = child == s->main.child ? &s->main : &s->pusher;
    const char *what = sl_json_str(event, "ev", "");

    if (!strcmp(what, "result")) {
        json_decref(held->result);
        held->result = sl_secrets_mask_json(&s->work.secrets, event);
        return;
    }
    if (s->work.lost || !s->work.report)
        return;
    if (held->role == ROLE_WORK && !strcmp(what, "start")) {
        json_decref(s->work.started);
        s->work.started = json_incref((json_t *)(uintptr_t)event);
        sl_fault_point("start.after");
    }
    if (held->role == ROLE_WORK && !strcmp(what, "checkpoint"))
        take_checkpoint(s, event);
    /* While results are published the lease may end at any moment: nothing more is written under
     * it. */
    if (held->role == ROLE_WORK || held->role == ROLE_FETCH) {
        json_t *masked = sl_secrets_mask_json(&s->work.secrets, event);
        sl_report_event(s->work.report, masked);
        json_decref(masked);
    }
}

static void on_output(void *arg, struct sl_child *child, char *line)
{
    struct sl_slot *s = arg;
    struct sl_held *held = child == s->main.child ? &s->main : &s->pusher;

    sl_secrets_mask(&s->work.secrets, line);
    if (s->work.report && !s->work.lost && held->role != ROLE_PUBLISH)
        sl_report_log(s->work.report, "info", "%s", line);
    else
        sl_log(SL_INFO, sl_slot_run(s), "%s", line);
}

/* ---- starting
 * ---------------------------------------------------------------------------------------------- */

static int start(struct sl_slot *s, struct sl_held *held, enum sl_role role,
                 const char *const *argv, const char *const *env, struct sl_err *err)
{
    const struct sl_child_owner owner = {on_event, on_output, on_exited, s};
    int rc = sl_child_start(s->agent->loop, argv, env, s->work.dir.path, &owner, &held->child, err);

    if (rc)
        return rc;
    held->role = role;
    sl_child_deadline(held->child, s->work.deadline_us);
    return 0;
}

static int start_transfer(struct sl_slot *s, struct sl_held *held, enum sl_role role,
                          const char *plan, struct sl_err *err)
{
    const char *argv[] = {s->agent->self, "transfer", role == ROLE_FETCH ? "fetch" : "push",
                          "--plan",       plan,       NULL};
    char token[1024];
    const char *env[SL_SECRETS_MAX + 2] = {NULL};
    int rc, n = 0;

    for (; n < s->work.secrets.n_env; n++)
        env[n] = s->work.secrets.env[n];
    if (s->agent->config->token) {
        snprintf(token, sizeof token, "SOFTLAUNCH_TOKEN=%s", s->agent->config->token);
        env[n] = token;
    }
    rc = start(s, held, role, argv, env, err);
    explicit_bzero(token, sizeof token);
    return rc;
}

int sl_slot_start_fetch(struct sl_slot *s, struct sl_err *err)
{
    const struct sl_fetch_plan fetch = {s->agent->config->server_url, s->agent->cache,
                                        s->agent->config->allow_paths,
                                        s->agent->config->n_allow_paths,
                                        s->agent->config->cache_bytes};
    char plan[SL_PATH_MAX];
    int rc = sl_rundir_fetch_plan(&s->work.dir, &s->work.claim, &fetch, plan, err);

    return rc ? rc : start_transfer(s, &s->main, ROLE_FETCH, plan, err);
}

int sl_slot_start_work(struct sl_slot *s, struct sl_err *err)
{
    const char *argv[] = {s->agent->worker, "train", "--run-dir", s->work.dir.path, NULL};
    char names[SL_DEVICES_TEXT_MAX], visible[SL_DEVICES_TEXT_MAX + 32], foreign[FOREIGN_BYTES];
    const char *env[SL_SECRETS_MAX + FOREIGN_MAX + 3] = {NULL};
    int n = 0, rc = sl_rundir_run_json(&s->work.dir, &s->work.claim, err);

    /* A run that asks for no GPU computes on the CPU, one that does sees its own only; SOFTLAUNCH_DEVICE in the
     * agent's environment has the last word about the kind. */
    if (!getenv("SOFTLAUNCH_DEVICE"))
        env[n++] = s->work.gpus ? "SOFTLAUNCH_DEVICE=cuda" : "SOFTLAUNCH_DEVICE=cpu";
    sl_devices_names(&s->agent->devices, s->work.gpus, names);
    snprintf(visible, sizeof visible, "CUDA_VISIBLE_DEVICES=%s", names);
    if (s->work.gpus)
        env[n++] = visible;
    for (int i = 0; i < s->work.secrets.n_env; i++)
        env[n++] = s->work.secrets.env[i];
    const struct sl_secret_sources from = sl_agent_secret_sources(s->agent);
    sl_secrets_foreign(&s->work.secrets, &from, env + n, foreign, sizeof foreign, FOREIGN_MAX);
    if (!rc)
        rc = start(s, &s->main, ROLE_WORK, argv, env, err);
    if (!rc)
        sl_slot_usage_start(s);
    return rc;
}

int sl_slot_start_publish(struct sl_slot *s, struct sl_err *err)
{
    const struct sl_publish_plan publish = {s->agent->config->server_url,
                                            sl_report_metrics(s->work.report), s->work.inputs,
                                            s->work.started};
    char plan[SL_PATH_MAX];
    int rc = sl_rundir_publish_plan(&s->work.dir, &s->work.claim, s->work.lease, &publish, plan, err);

    return rc ? rc : start_transfer(s, &s->main, ROLE_PUBLISH, plan, err);
}

void sl_slot_start_push(struct sl_slot *s)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_work *w = &s->work;
    char plan[SL_PATH_MAX];
    int rc;

    if (s->pusher.child || !w->pending[0])
        return;
    rc = sl_rundir_checkpoint_plan(&w->dir, &w->claim, w->inputs, w->lease, s->agent->config->server_url,
                                   w->pending, plan, &err);
    if (!rc)
        rc = start_transfer(s, &s->pusher, ROLE_CHECKPOINT, plan, &err);
    w->push_step = w->pending_step;
    w->push_mark = w->pending_mark;
    w->pending[0] = 0;
    if (rc)
        sl_report_log(w->report, "warn", "the checkpoint of step %lld was not uploaded: %s",
                      (long long)w->push_step, err.msg);
}

/* Runs of the trainer on the recorded tiny model, each in a process of its own, so that they can be
 * stopped or killed at a chosen instant; and what they leave, as one outcome that two runs are
 * compared by. */
#ifndef SL_TESTS_UNIT_TRAIN_RUN_H
#define SL_TESTS_UNIT_TRAIN_RUN_H
#include "base/buf.h"
#include "base/json.h"
#include "engine/trainer.h"
#include "tests/golden/golden.h"
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

enum { TRAIN_ROWS = 44, VALIDATION_ROWS = 11, STEPS = 12 };

/* ---- run directories
 * --------------------------------------------------------------------------------------- */

/* Rows of two tasks, each with an answer of its own; other: with one that the training rows never
 * have. */
static inline void train_rows(const char *dir, const char *name, int n, unsigned seed, bool other)
{
    char path[SL_PATH_MAX];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++) {
        char text[64];
        int len = 4;

        for (int k = 0; k < 4; k++) /* words of growing, differing lengths */
            len += (int)((seed = seed * 1664525u + 1013904223u) >> 24) % 9;
        for (int k = 0; k < len; k++)
            text[k] = (k % 5) == 4
                          ? ' '
                          : (char)('a' + ((seed = seed * 1664525u + 1013904223u) >> 24) % 9);
        text[len] = '\0';
        fprintf(f, "{\"taskname\": \"%s\", \"text\": \"%s\", \"answer\": \"%s\"}\n",
                i % 3 ? "one" : "two", text,
                other   ? "ayzzzzz"
                : i % 3 ? "aye"
                        : "no");
    }
    assert_int_equal(fclose(f), 0);
}

/* A new folder with data and run.json: the base below with "key=value" overrides, NULL at their
 * end. */
static inline void train_dir(char ret_dir[SL_PATH_MAX], const char *const *overrides)
{
    static const char base[] =
        "{'datasets': {'train': ['train.jsonl'], 'validation': ['validation.jsonl']},"
        " 'config': {'trainer': {'max_epochs': -1, 'max_steps': 12, 'val_check_interval': 4},"
        " 'exp_manager': {'create_early_stopping_callback': false},"
        " 'model': {'virtual_prompt_style': 'p-tuning', 'global_batch_size': 8, "
        "'micro_batch_size': 4,"
        "  'task_templates': ["
        "   {'taskname': 'one', 'prompt_template': '<|VIRTUAL_PROMPT_0|>{text} = {answer}', "
        "'total_virtual_tokens': 5},"
        "   {'taskname': 'two', 'prompt_template': '<|VIRTUAL_PROMPT_0|>say "
        "{text}<|VIRTUAL_PROMPT_1|>: {answer}',"
        "    'total_virtual_tokens': 5, 'virtual_token_splits': [3, 2], 'answer_field': 'answer',"
        "    'answer_only_loss': true}],"
        "  'p_tuning': {'encoder_type': 'tpmlp', 'encoder_hidden': 24},"
        "  'optim': {'lr': 0.02, 'sched': {'warmup_steps': 3}}}}}";
    char model[SL_PATH_MAX], full[SL_PATH_MAX], path[SL_PATH_MAX], *text = strdup(base);
    struct sl_err err = SL_ERR_INIT;
    json_t *spec = NULL;
    const char *tmp = getenv("TMPDIR");

    assert_non_null(text);
    snprintf(ret_dir, SL_PATH_MAX, "%s/sl-trainer-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(ret_dir));
    for (char *p = text; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    assert_int_equal(sl_json_parse(text, strlen(text), "base", &spec, &err), 0);
    free(text);
    for (; overrides && *overrides; overrides++)
        if (sl_spec_apply_override(spec, *overrides, &err))
            fail_msg("%s", err.msg);
    golden_path(model, "tiny_llama.gguf");
    assert_non_null(realpath(model, full));
    json_object_set_new(spec, "model", json_string(full));
    snprintf(path, sizeof path, "%s/run.json", ret_dir);
    assert_int_equal(sl_json_write(path, spec, &err), 0);
    json_decref(spec);
    train_rows(ret_dir, "train.jsonl", TRAIN_ROWS, 1, false);
    train_rows(ret_dir, "validation.jsonl", VALIDATION_ROWS, 2, false);
    train_rows(ret_dir, "other.jsonl", VALIDATION_ROWS, 2, true);
}

/* ---- one process
 * ------------------------------------------------------------------------------------------- */

/* What happens to a process: in the backward pass of optimizer step `step`, while the checkpoint
 * of that step is being written, or in its validation; and what it forgets of the checkpoint that it
 * resumes from. */
struct fate {
    enum {
        RUNS_ON,
        PREEMPTED,
        KILLED,
        KILLED_WRITING,
        PREEMPTED_VALIDATING,
        POISONED
    } what; /* POISONED: a parameter becomes NaN */
    int step;
    enum { FORGETS_NOTHING, FORGETS_MOMENTS, FORGETS_BEST, FORGETS_STEP } forgets;
    int trial; /* whom it strikes */
};

/* What a process left. */
struct outcome {
    int rc; /* sl_code; 1: killed */
    char msg[SL_ERR_MSG_MAX];
    json_t *state, *metrics; /* metrics: "step" or "step val" to the last event that said so */
    json_t *events;
    float *tables; /* what the run would export, and the encoder's own tables without dropout */
    float *encoded;
    int n_tables, n_encoded; /* floats */
};

static int train_threads = 1;
static struct sl_trainer *fated;
static struct sl_trial *fated_trial;
static struct fate fate;
static struct sl_ops fated_ops;

static inline void fated_copy(struct sl_backend *be, void *dst, const void *src, size_t bytes)
{
    const struct sl_trainer_group *g = &fated_trial->group[0];
    const char *at = dst, *from = (const char *)g->dtables;
    const float nan = NAN;

    sl_cpu_ops.copy(be, dst, src, bytes);
    if (fate.what == PREEMPTED_VALIDATING) {
        if (fated_trial->state.step == fate.step && sl_trainer_validation_due(fated_trial)) {
            raise(SIGTERM);
            fate.what = RUNS_ON;
        }
        return;
    }
    if (fated_trial->state.step != fate.step - 1 || at < from ||
        at >= from + (size_t)g->n_tasks * (size_t)fated->slot_v[fated_trial->first_slot] * (size_t)fated->hidden *
                         sizeof(float))
        return; /* not the backward pass of that step */
    if (fate.what == KILLED)
        raise(SIGKILL);
    if (fate.what == PREEMPTED)
        raise(SIGTERM);
    if (fate.what == POISONED)
        sl_cpu_ops.upload(be, fated_trial->params[fated_trial->n_params - 1].value, &nan, sizeof nan, NULL);
    if (fate.what != KILLED_WRITING)
        fate.what = RUNS_ON;
}

static inline int fated_download(struct sl_backend *be, void *dst, const void *src, size_t bytes,
                                 struct sl_err *err)
{
    bool is_best = false; /* tables that a validation keeps: no part of writing */

    for (int k = 0; k < fated->n_trials; k++) {
        const struct sl_trial *t = &fated->trial[k];
        const float *at = dst;
        size_t n = (size_t)t->n_keep * (size_t)t->n_prompts * (size_t)fated->hidden;

        is_best |= at >= t->best && at < t->best + n;
    }
    if (fate.what == KILLED_WRITING && fated_trial->state.step == fate.step && !is_best)
        raise(SIGKILL);
    return sl_cpu_ops.download(be, dst, src, bytes, err);
}

static inline void forget(const struct sl_trainer *trainer, struct sl_trial *t)
{
    struct sl_param *p = t->params;

    for (int i = 0; i < t->n_params && fate.forgets == FORGETS_MOMENTS; i++) {
        trainer->ops->zero(trainer->be, p[i].m, (size_t)p[i].rows * (size_t)p[i].cols * sizeof(float));
        trainer->ops->zero(trainer->be, p[i].v, (size_t)p[i].rows * (size_t)p[i].cols * sizeof(float));
    }
    if (fate.forgets == FORGETS_BEST)
        memset(t->best, 0,
               (size_t)t->n_keep * (size_t)t->n_prompts * (size_t)trainer->hidden * sizeof(float));
    if (fate.forgets == FORGETS_STEP) /* dropout and warm-up begin anew; the data does not */
        t->state.step -= t->steps_per_epoch; /* the trainer's own step stays */
}

static inline void write_floats(const char *dir, int trial, const char *name, const float *p, size_t n)
{
    char path[SL_PATH_MAX];

    if (sl_path(path, NULL, "%s/%d.%s", dir, trial, name) ||
        sl_file_write(path, p, n * sizeof *p, NULL))
        _exit(3);
}

static inline void leave_trial(const char *dir, const struct sl_trainer *t, int k, int rc,
                               const struct sl_err *err)
{
    const struct sl_trial *trial = &t->trial[k];
    const struct sl_train_state *s = &trial->state;
    json_t *best = json_array(), *end;
    char path[SL_PATH_MAX];
    size_t n = (size_t)trial->n_prompts * (size_t)t->hidden;

    for (int i = 0; i < s->n_best; i++)
        json_array_append_new(
            best, json_pack("[I, f]", (json_int_t)s->best[i].step, s->best[i].val_loss));
    if (trial->prompts) {
        write_floats(dir, k, "tables.bin", trial->prompts, n);
        write_floats(dir, k, "best.bin", trial->best, (size_t)trial->n_keep * n);
    }
    end = json_pack("{s:i, s:s, s:{s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:o}}", "rc", rc,
                    "msg", err->msg, "state", "step", (json_int_t)s->step, "epoch",
                    (json_int_t)s->epoch, "position", (json_int_t)s->position, "tokens",
                    (json_int_t)s->tokens, "first_val_loss", s->first_val_loss, "best_val_loss",
                    s->best_val_loss, "stop_best", s->stop_best, "best_step",
                    (json_int_t)s->best_step, "stop_waited", (json_int_t)s->stop_waited, "ended",
                    (json_int_t)s->ended, "best", best);
    if (sl_path(path, NULL, "%s/%d.end.json", dir, k) || sl_json_write(path, end, NULL))
        _exit(3);
    json_decref(end);
}

static inline void leave(const char *dir, struct sl_trainer *t, int rc, const struct sl_err *err)
{
    static struct sl_trial nothing;
    struct sl_trainer none = {.n_trials = 1, .trial = &nothing};

    if (!t->trial)
        t = &none;
    for (int k = 0; k < t->n_trials; k++)
        leave_trial(dir, t, k, rc, err);
    if (!t->prompts)
        return;
    sl_trainer_place_tables(t, false);
    for (int k = 0; k < t->n_trials; k++)
        write_floats(dir, k, "encoded.bin", t->trial[k].prompts,
                     (size_t)t->trial[k].n_prompts * (size_t)t->hidden);
}

static inline void train_child(const char *dir)
{
    const struct sl_trainer_options options = {.threads = train_threads};
    struct sl_err err = SL_ERR_INIT;
    struct sl_run run = {0};
    struct sl_trainer t = {0};
    struct sl_control *control = NULL;
    enum sl_wire_want want = SL_WANT_NOTHING;
    struct sl_emitter report;
    char path[SL_PATH_MAX];
    int rc = sl_path(path, &err, "%s/events.ndjson", dir);

    sl_emit_init(&report, open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!rc)
        rc = sl_control_new(-1, &control, &err);
    if (!rc)
        rc = sl_run_open(dir, &run, &err);
    if (!rc)
        rc = sl_trainer_init(&t, &run, &options, &report, control, &err);
    t.run = &run;
    if (!rc) {
        fated = &t;
        fated_trial = &t.trial[fate.trial];
        fated_ops = *t.ops;
        fated_ops.copy = fated_copy;
        fated_ops.download = fated_download;
        t.ops = &fated_ops;
        forget(&t, fated_trial);
        rc = sl_trainer_run(&t, &want, &err);
    }
    leave(dir, &t, rc, &err);
    sl_trainer_release(&t);
    sl_run_release(&run);
    sl_control_free(control);
    close(report.events_fd);
    exit(0); /* leak checkers look now */
}

/* ---- what it left
 * ------------------------------------------------------------------------------------------ */

static inline float *read_floats(const char *dir, int trial, const char *name, int *ret_n)
{
    char path[SL_PATH_MAX];
    struct sl_map map;
    float *p;

    assert_int_equal(sl_path(path, NULL, "%s/%d.%s", dir, trial, name), 0);
    *ret_n = 0;
    if (sl_map_open(path, &map, NULL))
        return NULL;
    p = malloc(map.len);
    assert_non_null(p);
    memcpy(p, map.data, map.len);
    *ret_n = (int)(map.len / sizeof *p);
    sl_map_close(&map);
    return p;
}

/* name: of the trial whose metrics are taken, "" of a run without. */
static inline void read_events(const char *dir, const char *name, struct outcome *o)
{
    char path[SL_PATH_MAX], *line = NULL, key[64];
    size_t cap = 0;
    ssize_t n;
    FILE *f;

    assert_int_equal(sl_path(path, NULL, "%s/events.ndjson", dir), 0);
    o->events = json_array();
    o->metrics = json_object();
    f = fopen(path, "r");
    assert_non_null(f);
    while ((n = getline(&line, &cap, f)) > 0) {
        json_t *e = NULL;

        assert_int_equal(sl_json_parse(line, (size_t)n, "event", &e, NULL), 0);
        if (!strcmp(sl_json_str(e, "ev", ""), "metric") &&
            !strcmp(sl_json_str(e, "trial", ""), name)) {
            json_t *kept = json_deep_copy(e);

            json_object_del(kept, "tokens_per_s"); /* time is no part of the result */
            json_object_del(kept, "trial");
            snprintf(key, sizeof key, "%lld%s", (long long)sl_json_int(e, "step", -1),
                     json_object_get(e, "val_loss") ? " val" : "");
            json_object_set_new(o->metrics, key, kept);
        }
        json_array_append_new(o->events, e);
    }
    free(line);
    fclose(f);
}

/* What a process left of one of its trials. */
static inline void read_outcome(const char *dir, int trial, const char *name, struct outcome *ret)
{
    char path[SL_PATH_MAX];
    json_t *end = NULL;

    memset(ret, 0, sizeof *ret);
    read_events(dir, name, ret);
    assert_int_equal(sl_path(path, NULL, "%s/%d.end.json", dir, trial), 0);
    assert_int_equal(sl_json_read(path, SL_JSON_FILE_MAX, &end, NULL), 0);
    ret->rc = (int)sl_json_int(end, "rc", 1);
    snprintf(ret->msg, sizeof ret->msg, "%s", sl_json_str(end, "msg", ""));
    ret->state = json_incref(json_object_get(end, "state"));
    json_decref(end);
    ret->tables = read_floats(dir, trial, "tables.bin", &ret->n_tables);
    ret->encoded = read_floats(dir, trial, "encoded.bin", &ret->n_encoded);
}

/* One process, and what it left of a run without trials. */
static inline void train_in(const char *dir, struct fate what, struct outcome *ret)
{
    char path[SL_PATH_MAX];
    int status;
    pid_t pid;

    assert_int_equal(sl_path(path, NULL, "%s/0.end.json", dir), 0);
    unlink(path);
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        fate = what;
        train_child(dir);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (what.what == KILLED || what.what == KILLED_WRITING) {
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        memset(ret, 0, sizeof *ret);
        read_events(dir, "", ret);
        ret->rc = 1;
        return;
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    read_outcome(dir, 0, "", ret);
}

static inline void outcome_release(struct outcome *o)
{
    json_decref(o->state);
    json_decref(o->metrics);
    json_decref(o->events);
    free(o->tables);
    free(o->encoded);
    memset(o, 0, sizeof *o);
}

/* The first difference between two runs, or NULL: training state, every metric, the tables' bits.
 */
static inline const char *outcomes_differ(const struct outcome *a, const struct outcome *b)
{
    static char text[256];
    const char *key;
    json_t *value;

    if (a->rc || b->rc)
        return "a run failed";
    if (json_object_size(a->metrics) != json_object_size(b->metrics))
        return "another number of metrics";
    json_object_foreach(a->metrics, key, value)
        if (!json_equal(value, json_object_get(b->metrics, key))) {
            snprintf(text, sizeof text, "metrics of step %s", key);
            return text;
        }
    if (!json_equal(a->state, b->state))
        return "the training state";
    if (a->n_tables != b->n_tables ||
        memcmp(a->tables, b->tables, (size_t)a->n_tables * sizeof(float)))
        return "the tables to keep";
    if (a->n_encoded != b->n_encoded ||
        memcmp(a->encoded, b->encoded, (size_t)a->n_encoded * sizeof(float)))
        return "the encoder's tables";
    return NULL;
}

/* The last event of a kind, or NULL; logs: whose message holds text. */
static inline const json_t *event_like(const struct outcome *o, const char *ev, const char *text)
{
    for (size_t i = json_array_size(o->events); i-- > 0;) {
        const json_t *e = json_array_get(o->events, i);

        if (!strcmp(sl_json_str(e, "ev", ""), ev) &&
            (!text || strstr(sl_json_str(e, "msg", ""), text)))
            return e;
    }
    return NULL;
}

#endif

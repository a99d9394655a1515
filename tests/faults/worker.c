/* A worker that trains nothing, in little time and memory, for thousands of runs: the same bits after a resume,
 * complete checkpoints, obedience to its agent (base/wire.h). The run's name steers it: fault.STEPS.STEP_MS.MODE;
 * MODE: ok, or crash (killed at half of the steps, on the first attempt). A checkpoint every second step. */
#include "base/file.h"
#include "base/json.h"
#include "base/wire.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int events_fd = -1;

static int end(const char *state, const char *cause, const char *msg, int status)
{
    sl_wire_send(events_fd, json_pack("{s:s, s:s, s:s, s:s, s:{}}", "ev", "result", "state", state, "cause", cause,
                                      "msg", msg, "metrics"), NULL);
    return status;
}

static uint64_t mix(uint64_t state, uint64_t x) /* FNV-1a, by 64-bit words */
{
    return (state ^ x) * UINT64_C(1099511628211);
}

static int checkpoint(int step, uint64_t state, struct sl_err *err)
{
    char path[64], file[96], text[64];
    int rc;

    snprintf(path, sizeof path, "checkpoints/step-%d", step);
    snprintf(file, sizeof file, "%s/state", path);
    snprintf(text, sizeof text, "%d %llu\n", step, (unsigned long long)state);
    rc = sl_mkdirs(path, err);
    if (!rc)
        rc = sl_file_write(file, text, strlen(text), err); /* under its final name when it is complete */
    if (!rc)
        rc = sl_wire_send(events_fd, json_pack("{s:s, s:i, s:s, s:b}", "ev", "checkpoint", "step", step, "path", path,
                                               "best", 0), err);
    return rc;
}

static int work(json_t *run, struct sl_control *control)
{
    struct sl_err err = SL_ERR_INIT;
    const char *name;
    int steps, step_ms, step = 0;
    uint64_t state = UINT64_C(14695981039346656037);
    unsigned long long saved;
    char mode[16] = "ok", out[64];
    FILE *f;

    name = sl_json_str(run, "name", "");
    if (sscanf(name, "fault.%d.%d.%15[a-z]", &steps, &step_ms, mode) < 2)
        return end("failed", "spec", "the name is not fault.STEPS.STEP_MS.MODE", 1);
    f = fopen(json_string_value(json_array_get(sl_json_get(json_object_get(run, "datasets"), "train"), 0)), "r");
    if (!f || access(sl_json_str(run, "model", ""), R_OK))
        return end("failed", "not_found", "an input is not there", 1);
    for (int c; (c = fgetc(f)) != EOF;)
        state = mix(state, (uint64_t)c);
    fclose(f);
    f = fopen("checkpoint/state", "r");
    if (f && fscanf(f, "%d %llu", &step, &saved) == 2)
        state = saved;
    if (f)
        fclose(f);
    sl_wire_send(events_fd, json_pack("{s:s, s:i, s:i, s:i, s:i, s:s, s:b}", "ev", "start", "step", step, "steps", steps,
                                      "rows", 1, "threads", 1, "kernel", "none", "resumed", step > 0), NULL);
    while (step < steps) {
        enum sl_wire_want want;

        usleep((useconds_t)step_ms * 1000);
        state = mix(state, (uint64_t)++step);
        sl_wire_send(events_fd, json_pack("{s:s, s:i, s:f}", "ev", "metric", "step", step, "loss",
                                          (double)(state >> 40) / (1 << 24)), NULL);
        if (step == (steps + 1) / 2 && !strcmp(mode, "crash") && sl_json_int(run, "attempt", 1) == 1)
            raise(SIGKILL);
        want = sl_control_take(control);
        if (want == SL_WANT_CANCEL)
            return end("cancelled", "cancelled", "", SL_EXIT_CANCELLED);
        if ((want != SL_WANT_NOTHING || step % 2 == 0) && checkpoint(step, state, &err))
            return end("failed", sl_code_name(err.code), err.msg, 1);
        if (want == SL_WANT_PREEMPT)
            return end("preempted", "ok", "", SL_EXIT_PREEMPTED);
    }
    snprintf(out, sizeof out, "%llu\n", (unsigned long long)state);
    if (sl_mkdirs("out", &err) || sl_file_write("out/state", out, strlen(out), &err))
        return end("failed", sl_code_name(err.code), err.msg, 1);
    return end("succeeded", "ok", "", 0);
}

int main(int argc, char **argv)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_control *control = NULL;
    const char *dir = ".";
    int control_fd = -1, status = 1;
    json_t *run = NULL;

    for (int i = 2; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--run-dir"))
            dir = argv[i + 1];
        else if (!strcmp(argv[i], "--events-fd"))
            events_fd = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--control-fd"))
            control_fd = atoi(argv[i + 1]);
    }
    if (!chdir(dir) && !sl_control_new(control_fd, &control, &err) && !sl_json_read("run.json", 1 << 20, &run, &err))
        status = work(run, control);
    json_decref(run);
    sl_control_free(control);
    return status;
}

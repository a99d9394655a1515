/* `softlaunch-worker`: the engine's process. One run, then it ends.
 *
 *   train --run-dir DIR [--events-fd N --control-fd N] [--spec FILE | --config FILE [key=value ...]] [--threads N] [--no-share]
 *   generate ...   data ...   selftest ...   (their own files)
 *
 * Exit status: 0 done; 75 preempted with a checkpoint; 76 cancelled; 77 abandoned by its agent; 1 failed: the cause is
 * in the result event, or on standard error. */
#include "base/json.h"
#include "engine/cpu/coretype.h"
#include "engine/data/data.h"
#include "engine/finish.h"
#include "engine/generate_main.h"
#include "engine/plan_main.h"
#include "engine/selftest.h"
#include "engine/format/table_forms.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char train_usage[] =
    "usage: softlaunch train --run-dir DIR [--spec SPEC.json [key=value ...]]\n"
    "       softlaunch train --config FILE.yaml [--run-dir DIR] [--allow-unknown] [key=value ...]\n"
    "       softlaunch train --plan FILE [--json] [--device D] [--memory SIZE] [key=value ...]\n"
    "  --run-dir DIR    a prepared run directory (run.json); results go to DIR/out, checkpoints to DIR/checkpoint\n"
    "  --spec FILE      make DIR/run.json from a job spec whose model and datasets are files\n"
    "  --config FILE    the same from a run configuration in NeMo's YAML, as model.optim.lr=3e-4 changes it; DIR is\n"
    "                   its exp_manager.explicit_log_dir, or exp_dir/name (nemo_experiments/NAME) by default\n"
    "  --allow-unknown  keys of FILE that nobody knows are named and ignored; else they are errors\n"
    "  --device D       auto (a GPU if there is one), cpu, cuda or cuda:N; default: SOFTLAUNCH_DEVICE, or auto\n"
    "  --threads N      CPU threads (default: all)\n"
    "  --no-share       compute shared prefixes once per row (slower; the same result)\n"
    "  --memory SIZE    take at most this of the device's memory: 80GiB, 512MiB\n"
    "  --plan FILE      only say what the run of a job spec, a YAML configuration or a run directory takes in memory:\n"
    "                   needs neither weights nor a GPU; --json: as JSON\n"
    "  --events-fd N, --control-fd N   how an agent talks to it\n"
    "A run that was stopped goes on from its checkpoint when it is started again.\n";

static int report_end(struct sl_emitter *r, int rc, enum sl_wire_want want, json_t *metrics,
                      const struct sl_err *err)
{
    const char *state = !rc                        ? "succeeded"
                        : rc != SL_CANCELLED       ? "failed"
                        : want == SL_WANT_PREEMPT ? "preempted"
                                                   : "cancelled";

    sl_emit(r, json_pack("{s:s, s:s, s:s*, s:s*, s:o*}", "ev", "result", "state", state,
                                 "cause", rc ? sl_code_name(rc) : NULL, "msg", rc ? err->msg : NULL,
                                 "metrics", metrics));
    if (!rc)
        return 0;
    if (rc != SL_CANCELLED)
        return 1;
    return want == SL_WANT_PREEMPT ? SL_EXIT_PREEMPTED : SL_EXIT_CANCELLED;
}

static int train(const char *run_dir, const struct sl_trainer_options *options, struct sl_emitter *report,
                 struct sl_control *control)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_run run = {0};
    struct sl_trainer t = {0};
    enum sl_wire_want want = SL_WANT_NOTHING;
    json_t *metrics = NULL;
    int rc = sl_run_open(run_dir, &run, &err);

    if (!rc)
        rc = sl_trainer_init(&t, &run, options, report, control, &err);
    if (!rc) {
        rc = sl_trainer_run(&t, &want, &err);
        if (!rc)
            rc = sl_finish(&t, &metrics, &err);
        if (rc == SL_CANCELLED && want == SL_WANT_NOTHING) /* asked while finishing: the last checkpoint stands */
            want = sl_control_take(control);
        sl_trainer_release(&t);
    }
    sl_run_release(&run);
    return report_end(report, rc, want, metrics, &err);
}

/* Makes a run directory from a YAML configuration; ret_dir: where, unless run_dir says it. */
static int prepare_yaml(const char *path, char **overrides, int n, bool allow_unknown, const char *run_dir,
                        char ret_dir[SL_PATH_MAX], struct sl_err *err)
{
    const struct sl_config_yaml_options options = {overrides, n, allow_unknown, false};
    struct sl_config_yaml config = {0};
    json_t *note;
    size_t i;
    int rc = sl_config_yaml_read(path, &options, &config, err);

    json_array_foreach(config.notes, i, note) fprintf(stderr, "%s: %s\n", path, json_string_value(note));
    if (!rc)
        rc = sl_path(ret_dir, err, "%s", run_dir ? run_dir : config.run_dir);
    if (!rc && !*ret_dir)
        rc = sl_err_set(err, SL_SPEC, "%s: exp_manager names no folder for the run: add --run-dir", path);
    if (!rc)
        rc = sl_run_prepare_yaml(ret_dir, path, &config, err);
    if (!rc && !run_dir)
        fprintf(stderr, "%s: results go to %s/out\n", path, ret_dir);
    sl_config_yaml_release(&config);
    return rc;
}

static bool ends_in(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);
    return n >= m && !strcmp(path + n - m, end);
}

/* Plans what a file says, in a run directory that is removed again. */
static int plan_main(const char *path, char **overrides, int n, bool allow_unknown,
                     const struct sl_trainer_options *options, bool json)
{
    char dir[SL_PATH_MAX], yaml_dir[SL_PATH_MAX], run_json[SL_PATH_MAX];
    const char *tmp = getenv("TMPDIR");
    struct sl_err err = SL_ERR_INIT;
    int rc, status;

    if (!sl_path(run_json, NULL, "%s/run.json", path) && sl_file_exists(run_json) && !n)
        return sl_plan_run(path, options, json);
    rc = sl_path(dir, &err, "%s/softlaunch-plan-XXXXXX", tmp ? tmp : "/tmp");
    if (!rc && !mkdtemp(dir))
        rc = sl_err_errno(&err, "making %s", dir);
    if (rc) {
        fprintf(stderr, "softlaunch train --plan: %s\n", err.msg);
        return 1;
    }
    if (ends_in(path, ".yaml") || ends_in(path, ".yml"))
        rc = prepare_yaml(path, overrides, n, allow_unknown, dir, yaml_dir, &err);
    else
        rc = sl_run_prepare(dir, path, overrides, n, &err);
    if (rc)
        fprintf(stderr, "softlaunch train --plan: %s\n", err.msg);
    status = rc ? 1 : sl_plan_run(dir, options, json);
    sl_rmtree(dir, NULL);
    return status;
}

static int train_main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"run-dir", required_argument, NULL, 'r'},   {"spec", required_argument, NULL, 's'},
        {"config", required_argument, NULL, 'y'},    {"allow-unknown", no_argument, NULL, 'u'},
        {"threads", required_argument, NULL, 't'},   {"events-fd", required_argument, NULL, 'e'},
        {"control-fd", required_argument, NULL, 'c'}, {"no-share", no_argument, NULL, 'n'},
        {"plan", required_argument, NULL, 'p'},      {"json", no_argument, NULL, 'j'},
        {"memory", required_argument, NULL, 'm'},
        {"device", required_argument, NULL, 'd'},     {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    const char *run_dir = NULL, *spec = NULL, *config = NULL, *plan = NULL, *memory = NULL;
    char yaml_dir[SL_PATH_MAX] = "";
    bool allow_unknown = false, json = false;
    struct sl_trainer_options options = {0};
    struct sl_control *control = NULL;
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    int c, events_fd = -1, control_fd = -1, status;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 'r')
            run_dir = optarg;
        else if (c == 's')
            spec = optarg;
        else if (c == 'y')
            config = optarg;
        else if (c == 'u')
            allow_unknown = true;
        else if (c == 't')
            options.threads = atoi(optarg);
        else if (c == 'd')
            options.device = optarg;
        else if (c == 'e')
            events_fd = atoi(optarg);
        else if (c == 'c')
            control_fd = atoi(optarg);
        else if (c == 'p')
            plan = optarg;
        else if (c == 'j')
            json = true;
        else if (c == 'm')
            memory = optarg;
        else if (c == 'n')
            options.no_share = true;
        else {
            fputs(train_usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (memory && sl_bytes_parse(memory, &options.memory_bytes, &err)) {
        fprintf(stderr, "softlaunch train --memory: %s\n", err.msg);
        return 2;
    }
    if (plan && !run_dir && !config && !spec)
        return plan_main(plan, argv + optind, argc - optind, allow_unknown, &options, json);
    if (plan || json || (!run_dir && !config) || (spec && config) || (optind < argc && !spec && !config)) {
        fputs(train_usage, stderr);
        return 2;
    }
    sl_emit_init(&report, events_fd);
    if (sl_control_new(control_fd, &control, &err) ||
        (spec && sl_run_prepare(run_dir, spec, argv + optind, argc - optind, &err)) ||
        (config && prepare_yaml(config, argv + optind, argc - optind, allow_unknown, run_dir, yaml_dir, &err)))
        return report_end(&report, err.code, SL_WANT_NOTHING, NULL, &err);
    status = train(config ? yaml_dir : run_dir, &options, &report, control);
    sl_control_free(control);
    return status;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"train", train_main}, {"generate", sl_generate_main}, {"data", sl_data_main},
                  {"convert", sl_convert_main}, {"selftest", sl_selftest_main}};

    if (sl_cpu_reexec(argv)) {
        perror("softlaunch-worker: starting over with the right BLAS kernels");
        return 1;
    }
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "usage: softlaunch-worker train|generate|data|convert|selftest ...\n");
    return 2;
}

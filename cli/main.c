/* `softlaunch`: one command, subcommands like git's. What needs the engine is exec'd: softlaunch-worker. */
#include "artifacts/pack.h"
#include "cli/cli.h"
#include "base/file.h"
#include "base/proc.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int exec_worker(int argc, char **argv);

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help; /* NULL: not for people */
} commands[] = {
    {"enqueue", cmd_enqueue, "put a run on a queue: enqueue spec.json [key=value ...]"},
    {"runs", cmd_runs, "list and show runs, do them again, their metrics: runs [show|rerun|metrics|... RUN]"},
    {"job", cmd_job, "reusable jobs made of runs: job create NAME --from RUN"},
    {"logs", cmd_logs, "a run's log, as it grows with -f: logs [-f] RUN"},
    {"cancel", cmd_cancel, "stop a run: cancel RUN"},
    {"queues", cmd_queues, "queues: limits, pause, resume, drain"},
    {"projects", cmd_projects, "projects: limits and quotas, export and import"},
    {"agents", cmd_agents, "agents: pause, resume, drain"},
    {"artifact", cmd_artifact, "models, data sets and results: artifact put|get|ls|alias|convert"},
    {"registry", cmd_registry, "registered models and their stages: registry [show|link|unlink|stage|unstage]"},
    {"cache", cmd_cache, "the files that agents of this machine share: cache ls|verify|gc"},
    {"user", cmd_user, "who may use the server: user [ls|add|set|rm NAME]"},
    {"webhook", cmd_webhook, "tell other systems what happens: webhook [ls|add|rm|test NAME]"},
    {"token", cmd_token, "secrets to come with: token [ls|add|revoke ID]"},
    {"audit", cmd_audit, "who did what"},
    {"reindex", cmd_reindex, "make the server's lists of runs anew and compare"},
    {"serve", cmd_serve, "the server: API, artifact store, web UI"},
    {"agent", cmd_agent, "claim and run what is queued on this machine"},
    {"train", exec_worker, "train by hand, without a queue: train --run-dir DIR"},
    {"generate", exec_worker, "text from a model and a prompt table"},
    {"data", exec_worker, "prepare and check data sets: data wordnet|squad|check"},
    {"doctor", cmd_doctor, "whether this machine, Redis and the server are fit for runs"},
    {"transfer", cmd_transfer, NULL},
};
#define N_COMMANDS (sizeof commands / sizeof *commands)

int cli_fail(const char *name, const struct sl_err *err)
{
    fprintf(stderr, "softlaunch %s: %s\n", name, err->msg[0] ? err->msg : sl_code_name(err->code));
    return 1;
}

static int exec_worker(int argc, char **argv)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    struct sl_err err = SL_ERR_INIT;
    const char *name = argv[0];

    (void)argc;
    if (sl_self_dir(dir, sizeof dir, &err) || sl_path(path, &err, "%s/softlaunch-worker", dir))
        return cli_fail(name, &err);
    argv[-1] = path; /* argv is the tail of main's: the worker sees "softlaunch-worker NAME ..." */
    execv(path, argv - 1);
    sl_err_errno(&err, "starting %s (is it installed beside softlaunch?)", path);
    return cli_fail(name, &err);
}

static void usage(FILE *to)
{
    fprintf(to, "usage: softlaunch COMMAND [ARGUMENT ...]\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (commands[i].help)
            fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].help);
    fprintf(to, "\n`softlaunch COMMAND --help` says more. Version %s.\n", SL_VERSION);
}

int main(int argc, char **argv)
{
    sl_unpack_main(argc, argv);
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit (ulimit -f) is an error that is told, not the end */
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    if (argc > 2 && !strcmp(argv[1], "artifact") && !strcmp(argv[2], "convert"))
        return exec_worker(argc - 2, argv + 2); /* prompt tables are the engine's */
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
        usage(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("softlaunch %s\n", SL_VERSION);
        return 0;
    }
    fprintf(stderr, "softlaunch: there is no command '%s'; `softlaunch help` lists them\n", argv[1]);
    return 2;
}

/* The subcommands of `softlaunch`. Each gets its own name in argv[0], parses its arguments, calls the part that
 * does the work and prints. Exit status: 0 done, 1 failed (one line on standard error says what, where and what
 * to do), 2 wrong usage. */
#ifndef SL_CLI_CLI_H
#define SL_CLI_CLI_H
#include "base/err.h"

int cmd_agent(int argc, char **argv);
int cmd_agents(int argc, char **argv);
int cmd_artifact(int argc, char **argv);
int cmd_audit(int argc, char **argv);
int cmd_cache(int argc, char **argv);
int cmd_cancel(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_enqueue(int argc, char **argv);
int cmd_job(int argc, char **argv);
int cmd_logs(int argc, char **argv);
int cmd_projects(int argc, char **argv);
int cmd_queues(int argc, char **argv);
int cmd_registry(int argc, char **argv);
int cmd_reindex(int argc, char **argv);
int cmd_runs(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_token(int argc, char **argv);
int cmd_transfer(int argc, char **argv);
int cmd_webhook(int argc, char **argv);
int cmd_user(int argc, char **argv);

/* Prints "softlaunch NAME: message" and gives the exit status 1. */
int cli_fail(const char *name, const struct sl_err *err);

#endif

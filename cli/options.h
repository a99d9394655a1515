/* The options of a command in one table: cli_parse reads them and explains them; completion and manual pages are made of
 * what --help prints (deploy/completion, deploy/man.sh).
 *
 *     const struct cli_option options[] = {{"json", 'j', CLI_FLAG, &json, NULL, "JSON instead of text"},
 *                                          CLI_SERVER_OPTIONS(server), CLI_OPTIONS_END};
 *     int at = cli_parse(&(struct cli_usage){...}, argc, argv);
 *     if (at < 0)
 *         return cli_usage_status(at);
 */
#ifndef SL_CLI_OPTIONS_H
#define SL_CLI_OPTIONS_H
#include <limits.h>
#include <stdbool.h>

#define CLI_OPTIONS_MAX 40
#define CLI_LIST_MAX 64

enum cli_kind {
    CLI_FLAG, /* bool */
    CLI_TEXT, /* const char *; of several the last one holds */
    CLI_INT,  /* int, from least to most (both 0: any) */
    CLI_LIST  /* struct cli_list: may be given several times */
};
struct cli_list {
    const char *items[CLI_LIST_MAX];
    int n;
};
struct cli_option {
    const char *name; /* without dashes */
    char letter;      /* -x is the same; 0: none */
    enum cli_kind kind;
    void *value;     /* of the kind's type */
    const char *arg; /* what it takes, as "FILE"; NULL for a flag */
    const char *help; /* NULL: not for people */
    int least, most;
};
#define CLI_OPTIONS_END {NULL, 0, CLI_FLAG, NULL, NULL, NULL, 0, 0}

#define CLI_REDIS_HELP "Redis (SOFTLAUNCH_REDIS, which no list of processes shows)"
#define CLI_REDIS_URLS                                                                             \
    "URL is redis://[USER:PASSWORD@]HOST[:PORT][/DB] (several hosts with commas: they are tried in turn, and\n" \
    "a Cluster's nodes), redis+sentinel://HOST[:PORT],.../NAME, unix:///PATH; over TLS rediss:// and\n"   \
    "rediss+sentinel://, with ?cacert=FILE&cert=FILE&key=FILE&sni=NAME behind."

struct cli_verb {
    const char *name; /* "": what the command does without any */
    int operands;     /* behind it */
};
struct cli_usage {
    const char *name;          /* of the command */
    const char *const *forms;  /* what stands behind the name, a line each; NULL-terminated */
    const struct cli_option *options;
    const char *more;          /* behind the options: lines; may be NULL */
    const struct cli_verb *verbs; /* the first operand is one of them; without any the first one is meant. Up to name
                                   * NULL; itself NULL: the command has none */
    int least, most;           /* operands, without verbs; most -1: any number */
};

/* The index of the first operand in argv (behind all options: argv is sorted), or negative: help or an error has
 * been printed, and the command ends with cli_usage_status. */
int cli_parse(const struct cli_usage *usage, int argc, char **argv);
int cli_usage_status(int parsed); /* 0 after --help, else 2 */
/* "softlaunch NAME: what" and the usage on standard error; for what a table cannot say. */
int cli_wrong(const struct cli_usage *usage, const char *what);

#endif

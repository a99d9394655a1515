#include "cli/options.h"
#include "cli/cli.h"
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELPED (-1)
#define WRONG (-2)
#define HELP_COLUMN 22
#define FIRST_LONG 256 /* getopt's value of the first option; letters lie below */

static void print_option(FILE *to, const struct cli_option *o)
{
    char left[80];

    snprintf(left, sizeof left, "%s%c%s--%s%s%s", o->letter ? "-" : "", o->letter ? o->letter : ' ',
             o->letter ? ", " : "", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    const char *text = o->letter ? left : left + 1;
    if (strlen(text) < HELP_COLUMN - 3)
        fprintf(to, "  %-*s ", HELP_COLUMN - 3, text);
    else
        fprintf(to, "  %s\n%*s", text, HELP_COLUMN, "");
    for (const char *p = o->help; *p; p++) {
        fputc(*p, to);
        if (*p == '\n')
            fprintf(to, "%*s", HELP_COLUMN, "");
    }
    fputc('\n', to);
}

static void print_usage(FILE *to, const struct cli_usage *u)
{
    for (int i = 0; u->forms[i]; i++)
        fprintf(to, "%s softlaunch %s%s%s\n", i ? "      " : "usage:", u->name, *u->forms[i] ? " " : "",
                u->forms[i]);
    fputc('\n', to);
    for (const struct cli_option *o = u->options; o->name; o++)
        if (o->help)
            print_option(to, o);
    if (u->more)
        fprintf(to, "\n%s\n", u->more);
}

int cli_wrong(const struct cli_usage *usage, const char *what)
{
    if (what)
        fprintf(stderr, "softlaunch %s: %s\n", usage->name, what);
    print_usage(stderr, usage);
    return 2;
}

int cli_usage_status(int parsed)
{
    return parsed == HELPED ? 0 : 2;
}

/* 0, or WRONG with the reason printed. */
static int take(const struct cli_usage *u, const struct cli_option *o, const char *text)
{
    char *end;
    long v;

    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->value = true;
        return 0;
    case CLI_TEXT:
        *(const char **)o->value = text;
        return 0;
    case CLI_LIST: {
        struct cli_list *list = o->value;
        if (list->n == CLI_LIST_MAX) {
            fprintf(stderr, "softlaunch %s: --%s: more than %d\n", u->name, o->name, CLI_LIST_MAX);
            return WRONG;
        }
        list->items[list->n++] = text;
        return 0;
    }
    case CLI_INT:
        break;
    }
    errno = 0;
    v = strtol(text, &end, 10);
    int least = o->least || o->most ? o->least : INT_MIN, most = o->least || o->most ? o->most : INT_MAX;
    if (errno || end == text || *end || v < least || v > most) {
        fprintf(stderr, "softlaunch %s: --%s: expected a whole number", u->name, o->name);
        if (least != INT_MIN)
            fprintf(stderr, most == INT_MAX ? " from %d" : " from %d to %d", least, most);
        fprintf(stderr, ", found %.40s\n", text);
        return WRONG;
    }
    *(int *)o->value = (int)v;
    return 0;
}

static bool operands_ok(const struct cli_usage *u, int n, char **operands)
{
    const struct cli_verb *v = u->verbs;

    if (!v)
        return n >= u->least && (u->most < 0 || n <= u->most);
    while (n && v->name && strcmp(v->name, operands[0]) != 0)
        v++;
    return v->name && v->operands == (n ? n - 1 : 0);
}

int cli_parse(const struct cli_usage *u, int argc, char **argv)
{
    struct option longs[CLI_OPTIONS_MAX + 2];
    char letters[2 * CLI_OPTIONS_MAX + 2] = "h";
    int n = 0, at = 1, c, index;

    for (; u->options[n].name; n++) {
        const struct cli_option *o = &u->options[n];
        longs[n] = (struct option){o->name, o->kind == CLI_FLAG ? no_argument : required_argument, NULL,
                                   FIRST_LONG + n};
        if (o->letter) {
            letters[at++] = o->letter;
            if (o->kind != CLI_FLAG)
                letters[at++] = ':';
        }
    }
    letters[at] = 0;
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n + 1] = (struct option){NULL, 0, NULL, 0};
    while ((c = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        if (c == 'h') {
            print_usage(stdout, u);
            return HELPED;
        }
        for (index = 0; index < n; index++)
            if (c == FIRST_LONG + index || (c == u->options[index].letter && c))
                break;
        if (index == n) { /* getopt has said what it does not know */
            print_usage(stderr, u);
            return WRONG;
        }
        if (take(u, &u->options[index], optarg))
            return WRONG;
    }
    if (!operands_ok(u, argc - optind, argv + optind)) {
        print_usage(stderr, u);
        return WRONG;
    }
    return optind;
}

/* `softlaunch artifact convert`: prompt tables from one tool's form into another's. */
#include "engine/format/table_forms.h"
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAMES 1024

static const char usage[] =
    "usage: softlaunch artifact convert FROM TO [--task NAME ...]\n"
    "  FROM   prompt tables: prompt_table.safetensors or a folder with one, a .nemo archive of "
    "NeMo\n"
    "         prompt learning, a PEFT adapter (its folder, or a folder of such), a TensorRT-LLM "
    ".npy\n"
    "  TO     what its name says: x.safetensors (ours), x.nemo (NeMo), x.npy (TensorRT-LLM), or "
    "else a\n"
    "         folder that gets a PEFT adapter a task\n"
    "  --task NAME    names for the tables of an .npy, in order, or for one PEFT adapter\n"
    "Rows keep their bits. Templates come along between ours and NeMo; PEFT keeps the tasks' names "
    "alone,\n"
    ".npy nothing but the rows.\n";

static bool ends_in(const char *text, const char *tail)
{
    size_t n = strlen(text), m = strlen(tail);

    return n > m && !strcmp(text + n - m, tail);
}

static int write_peft(const char *dir, const struct sl_tables *t, struct sl_err *err)
{
    struct sl_peft how = {.type = SL_ENC_TABLE};
    bool add_bos = json_is_true(json_object_get(t->data, "add_bos"));
    int rc = 0;

    for (int i = 0; i < t->n && !rc; i++) /* all or none */
        rc = sl_peft_check(t->table[i].task,
                           json_string_value(json_object_get(t->table[i].config, "prompt_template")),
                           add_bos, err);
    for (int i = 0; i < t->n && !rc; i++)
        rc = sl_export_peft(dir, &t->table[i], &how, add_bos, err);
    return rc;
}

static int write_any(const char *to, const struct sl_tables *t, struct sl_err *err)
{
    if (ends_in(to, ".safetensors"))
        return sl_export_tables(to, t, err);
    if (ends_in(to, ".nemo"))
        return sl_export_nemo(to, t, NULL, err);
    if (ends_in(to, ".npy"))
        return sl_export_npy(to, t, err);
    return write_peft(to, t, err);
}

int sl_convert_main(int argc, char **argv)
{
    static const struct option options[] = {{"task", required_argument, NULL, 't'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *tasks[MAX_NAMES];
    struct sl_err err = SL_ERR_INIT;
    struct sl_tables t = {0};
    int n = 0, c, rc;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 't' && n < MAX_NAMES) {
            tasks[n++] = optarg;
            continue;
        }
        fputs(usage, c == 'h' ? stdout : stderr);
        return c == 'h' ? 0 : 2;
    }
    if (argc - optind != 2) {
        fputs(usage, stderr);
        return 2;
    }
    rc = sl_tables_import(argv[optind], tasks, n, &t, &err);
    if (!rc)
        rc = write_any(argv[optind + 1], &t, &err);
    if (rc)
        fprintf(stderr, "softlaunch artifact convert: %s\n", err.msg);
    for (int i = 0; i < t.n && !rc; i++)
        printf("%s: %d virtual tokens of %d\n", t.table[i].task, t.table[i].virtual_tokens,
               t.table[i].hidden);
    if (!rc)
        printf("%d prompt table%s in %s\n", t.n, t.n == 1 ? "" : "s", argv[optind + 1]);
    sl_tables_release(&t);
    return rc ? 1 : 0;
}

#include "base/file.h"
#include "base/json.h"
#include "base/yaml.h"
#include "engine/data/data.h"
#include "engine/data/dataset.h"
#include "engine/weights.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_SHOWN 5
#define VIRTUAL_RUN_MAX 4 /* a longer run of virtual tokens is shown by its ends */
#define SHOWN_TEXT_MAX (1u << 20)

struct check {
    struct sl_config config;
    struct sl_weights *weights;
    struct sl_tokenizer *tok;
    int max_positions, rows_shown;
};

/* ---- printing ------------------------------------------------------------------------------ */

/* Text as one line: control characters as \n or \x07. */
static void add_escaped(struct sl_buf *out, const char *p, size_t n)
{
    for (; n; p++, n--) {
        if (*p == '\n')
            sl_buf_adds(out, "\\n");
        else if ((unsigned char)*p < ' ' || *p == 127)
            sl_buf_addf(out, "\\x%02x", (unsigned char)*p);
        else
            sl_buf_addc(out, *p);
    }
}

/* Ends of a run of tokens share characters, so that a run is detokenised whole. */
static int add_tokens(const struct check *c, const int32_t *ids, int n, struct sl_buf *out,
                      struct sl_err *err)
{
    struct sl_buf text;
    int rc;

    sl_buf_init(&text, SHOWN_TEXT_MAX);
    rc = sl_detokenize(c->tok, ids, n, true, &text, err);
    if (!rc)
        add_escaped(out, text.p, text.len);
    sl_buf_release(&text);
    return rc;
}

/* "<v0>...<v15>What is it?\nAnswer:[[ animal<|im_end|>]]" */
static int show_row(const struct check *c, const struct sl_row *row, struct sl_buf *out,
                    struct sl_err *err)
{
    int rc = 0;

    for (int i = 0, j; !rc && i < row->n; i = j) {
        bool counted = row->target[i], is_virtual = row->id[i] < 0;
        for (j = i + 1; j < row->n && row->target[j] == row->target[i] &&
                        (row->id[j] < 0) == is_virtual &&
                        (!is_virtual || row->id[j] == row->id[j - 1] - 1);)
            j++;
        if (is_virtual && j - i > VIRTUAL_RUN_MAX)
            sl_buf_addf(out, "<v%d>...<v%d>", -row->id[i] - 1, -row->id[j - 1] - 1);
        for (int k = i; is_virtual && j - i <= VIRTUAL_RUN_MAX && k < j; k++)
            sl_buf_addf(out, "<v%d>", -row->id[k] - 1);
        if (is_virtual)
            continue;
        if (counted)
            sl_buf_adds(out, "[[");
        rc = add_tokens(c, row->id + i, j - i, out, err);
        if (counted)
            sl_buf_adds(out, "]]");
    }
    return rc;
}

static int show_rows(const struct check *c, const struct sl_dataset *ds, struct sl_err *err)
{
    struct sl_buf where, text;
    int n = sl_dataset_rows(ds) < c->rows_shown ? sl_dataset_rows(ds) : c->rows_shown, rc = 0;

    sl_buf_init(&where, 4096);
    sl_buf_init(&text, SHOWN_TEXT_MAX);
    if (n)
        printf("%-28s %-16s %9s %7s  %s\n", "row", "task", "positions", "counted",
               "text, [[counted in the loss]]");
    for (int i = 0; !rc && i < n; i++) {
        struct sl_row row = sl_dataset_row(ds, i);
        sl_buf_reset(&where);
        sl_buf_reset(&text);
        sl_dataset_where(ds, i, &where);
        rc = show_row(c, &row, &text, err);
        if (!rc)
            printf("%-28s %-16s %9d %7d  %s\n", where.p, c->config.task[row.slot].name, row.n,
                   sl_dataset_row_targets(ds, i), text.p);
    }
    if (n)
        printf("\n");
    sl_buf_release(&where);
    sl_buf_release(&text);
    return rc;
}

static void show_tasks(const struct check *c, const struct sl_dataset *ds)
{
    printf("%-28s %9s %10s %8s %8s %10s\n", "task", "rows", "positions", "shortest", "longest",
           "counted");
    for (int t = 0; t < c->config.n_tasks; t++) {
        int64_t rows = 0, positions = 0, counted = 0;
        int shortest = 0, longest = 0;
        for (int i = 0; i < sl_dataset_rows(ds); i++) {
            struct sl_row row = sl_dataset_row(ds, i);
            if (row.slot != t)
                continue;
            shortest = !rows || row.n < shortest ? row.n : shortest;
            longest = row.n > longest ? row.n : longest;
            rows++;
            positions += row.n;
            counted += sl_dataset_row_targets(ds, i);
        }
        printf("%-28s %9lld %10lld %8d %8d %10lld\n", c->config.task[t].name, (long long)rows,
               (long long)positions, shortest, longest, (long long)counted);
    }
}

static void show_counts(const struct check *c, const struct sl_dataset *ds)
{
    struct sl_dataset_counts n = sl_dataset_counts(ds);

    printf("\n%lld rows read, %lld kept, %lld of them truncated; skipped: %lld longer than %d "
           "positions, %lld shorter than %d\n",
           (long long)n.read, (long long)n.rows, (long long)n.truncated, (long long)n.too_long,
           c->max_positions, (long long)n.too_short, c->config.data.min_seq_length);
    if (sl_dataset_mostly_skipped(ds))
        printf("warning: more than half of the rows are skipped\n");
    if (n.split_boundary)
        printf("warning: in %lld rows a token spans the start of the answer, so that generation "
               "starts from other tokens than training saw; \"Answer: {answer}\", with the space, "
               "avoids it\n",
               (long long)n.split_boundary);
}

/* ---- the subcommand ------------------------------------------------------------------------ */

static int check_files(struct check *c, const char *what, const char *const *paths, int n,
                       struct sl_err *err)
{
    struct sl_dataset_options options = {.answer = SL_ANSWER_ROW,
                                         .max_positions = c->max_positions};
    struct sl_dataset *ds = NULL;
    int rc = sl_dataset_open(paths, n, &c->config, c->tok, &options, &ds, err);

    if (rc)
        return rc;
    printf("%s\n\n", what);
    rc = show_rows(c, ds, err);
    if (!rc) {
        show_tasks(c, ds);
        show_counts(c, ds);
    }
    sl_dataset_free(ds);
    return rc;
}

static int open_model(struct check *c, const char *path, struct sl_err *err)
{
    int rc = sl_weights_open(path, &c->weights, err);

    if (!rc)
        rc = sl_weights_tokenizer(c->weights, &c->tok, err);
    if (rc)
        return rc;
    c->max_positions = sl_weights_arch(c->weights)->max_positions;
    if (c->config.data.max_seq_length && c->config.data.max_seq_length < c->max_positions)
        c->max_positions = c->config.data.max_seq_length;
    return 0;
}

/* Files that --data did not name: the config's own lists, else the local paths among a spec's
 * datasets. */
static int check_named(struct check *c, const char *spec_path, struct sl_err *err)
{
    static const char *const names[] = {"train", "validation", "test"};
    const struct sl_strings *lists[] = {&c->config.data.train, &c->config.data.validation,
                                        &c->config.data.test};
    const char *paths[SL_DATASET_MAX_FILES], *s;
    json_t *spec = NULL, *entry, *datasets;
    bool any = false;
    size_t i;
    int rc = 0, n;

    if (!lists[0]->n && !lists[1]->n && !lists[2]->n)
        rc = sl_yaml_read(spec_path, &spec, err); /* of a job spec, which is JSON and so YAML */
    datasets = json_object_get(spec, "datasets");
    for (int k = 0; !rc && k < 3; k++) {
        n = 0;
        for (int j = 0; j < lists[k]->n; j++)
            paths[n++] = lists[k]->s[j];
        json_array_foreach(json_object_get(datasets, names[k]), i, entry)
        {
            s = json_is_object(entry) ? sl_json_str(entry, "ref", NULL) : json_string_value(entry);
            if (s && sl_file_exists(s) && n < SL_DATASET_MAX_FILES)
                paths[n++] = s;
        }
        if (!n)
            continue;
        printf("%s", any ? "\n" : "");
        any = true;
        rc = check_files(c, names[k], paths, n, err);
    }
    if (!rc && !any)
        rc = sl_err_set(err, SL_SPEC, "%s names no local file of rows: add --data FILE", spec_path);
    json_decref(spec);
    return rc;
}

int sl_data_check(int argc, char **argv)
{
    static const struct option options[] = {{"config", 1, NULL, 'c'}, {"spec", 1, NULL, 'c'},
                                            {"model", 1, NULL, 'm'},  {"rows", 1, NULL, 'r'},
                                            {"data", 1, NULL, 'd'},   {NULL, 0, NULL, 0}};
    struct check c = {.rows_shown = ROWS_SHOWN};
    struct sl_err err = SL_ERR_INIT;
    const char *config = NULL, *model = NULL, *paths[SL_DATASET_MAX_FILES];
    int o, n = 0, rc;
    bool ok = true;

    optind = 1;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'c')
            config = optarg;
        else if (o == 'm')
            model = optarg;
        else if (o == 'r')
            c.rows_shown = atoi(optarg);
        else if (o == 'd' && n < SL_DATASET_MAX_FILES)
            paths[n++] = optarg;
        else
            ok = false;
    }
    while (optind < argc && n < SL_DATASET_MAX_FILES) /* "--data a b c" */
        paths[n++] = argv[optind++];
    if (!ok || !config || !model || optind < argc) {
        fprintf(stderr, "usage: softlaunch data check --config FILE --model MODEL [--rows N] "
                        "[--data FILE ...]\n"
                        "FILE is a run configuration (JSON, or NeMo's YAML: *.yaml) or a job spec. Without --data its own files "
                        "are checked.\n");
        return 2;
    }
    rc = sl_config_read(config, &c.config, &err);
    if (!rc)
        rc = open_model(&c, model, &err);
    if (!rc)
        rc = n ? check_files(&c, "data", paths, n, &err) : check_named(&c, config, &err);
    if (rc)
        fprintf(stderr, "softlaunch data check: %s\n", err.msg);
    sl_tokenizer_free(c.tok);
    sl_weights_close(c.weights);
    sl_config_release(&c.config);
    return rc ? 1 : 0;
}

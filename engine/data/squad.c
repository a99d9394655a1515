#include "engine/data/squad.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/data/data.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TASKNAME "squad"
#define SHORT_VAL_PART 10 /* rows of short_train for each of short_val */

const char *const sl_squad_files[SL_SQUAD_FILES] = {"train", "val", "test", "short_train",
                                                    "short_val"};

enum answers {
    FIRST, /* and only rows that have one */
    NONE,
    ALL
};

/* A file that is being filled. */
struct out {
    struct sl_buf text;
    int rows, max; /* max 0: no limit */
};

/* ---- reading ---- */

static int wrong(const char *path, const char *what, const char *where, struct sl_err *err)
{
    return sl_err_set(err, SL_DATA, "%s is not SQuAD's format: %s%s", path, where, what);
}

/* object[key] as a string, or NULL with the error told. */
static const char *text_of(const json_t *object, const char *key, const char *path,
                           const char *where, struct sl_err *err)
{
    const char *s = json_string_value(json_object_get(object, key));
    char what[64];

    if (!s) {
        snprintf(what, sizeof what, "%s should be a text", key);
        wrong(path, what, where, err);
    }
    return s;
}

static int list_of(const json_t *object, const char *key, const char *path, const char *where,
                   const json_t **ret, struct sl_err *err)
{
    const json_t *list = json_object_get(object, key);
    char what[64];

    if (!json_is_array(list)) {
        snprintf(what, sizeof what, "%s should be a list", key);
        return wrong(path, what, where, err);
    }
    *ret = list;
    return 0;
}

/* A SQuAD file's articles; *ret_json owns them. */
static int read_file(const char *path, json_t **ret_json, const json_t **ret_articles,
                     struct sl_err *err)
{
    json_t *json = NULL;
    int rc = sl_json_read(path, SL_SQUAD_FILE_MAX, &json, err);

    if (rc == SL_SPEC) { /* no JSON: data that somebody else wrote */
        rc = SL_DATA;
        if (err)
            err->code = rc;
    }
    if (rc)
        return rc;
    rc = list_of(json, "data", path, "", ret_articles, err);
    if (rc)
        json_decref(json);
    else
        *ret_json = json;
    return rc;
}

/* ---- rows ---- */

static json_t *all_answers(const json_t *answers)
{
    json_t *all = json_array(), *a;
    size_t i;

    json_array_foreach((json_t *)answers, i, a)
        json_array_append(all, json_object_get(a, "text"));
    return all;
}

static int add_row(struct out *out, const char *topic, const char *context, const char *question,
                   json_t *answer_stolen, struct sl_err *err)
{
    json_t *row = json_pack("{s:s, s:s, s:s, s:o*, s:s*}", "taskname", TASKNAME, "context", context,
                            "question", question, "answer", answer_stolen, "topic", topic);
    char *line = row ? json_dumps(row, 0) : NULL;
    int rc = 0;

    if (!line || sl_buf_adds(&out->text, line) || sl_buf_addc(&out->text, '\n'))
        rc = sl_err_set(err, SL_NOMEM, "out of memory, or more than %u MiB of rows",
                        SL_SQUAD_OUT_MAX >> 20);
    out->rows += !rc;
    free(line);
    json_decref(row);
    return rc;
}

static int add_question(struct out *out, enum answers how, const char *topic, const char *context,
                        const json_t *qa, const char *path, const char *where, struct sl_err *err)
{
    const char *question = text_of(qa, "question", path, where, err);
    const json_t *answers = NULL;
    bool impossible = json_is_true(json_object_get(qa, "is_impossible"));
    json_t *a, *answer = NULL;
    size_t i;
    int rc = question ? list_of(qa, "answers", path, where, &answers, err) : SL_DATA;

    if (rc)
        return rc;
    json_array_foreach((json_t *)answers, i, a)
        if (!text_of(a, "text", path, where, err))
            return SL_DATA;
    if (impossible)
        answers = NULL;
    if (how == FIRST && !json_array_size(answers))
        return 0;
    if (how == FIRST)
        answer = json_incref(json_object_get(json_array_get(answers, 0), "text"));
    else if (how == ALL)
        answer = all_answers(answers);
    return add_row(out, topic, context, question, answer, err);
}

/* Rows of articles [from, to). */
static int add_articles(const struct sl_squad *squad, const char *path, const json_t *articles,
                        size_t from, size_t to, enum answers how, struct out *out,
                        struct sl_err *err)
{
    char where[96];
    int rc = 0;

    for (size_t a = from; a < to && !rc; a++) {
        const json_t *article = json_array_get(articles, a), *paragraphs = NULL, *qas = NULL;
        const char *title, *context;
        json_t *p, *qa;
        size_t i, k;

        snprintf(where, sizeof where, "data[%zu].", a);
        title = text_of(article, "title", path, where, err);
        rc = title ? list_of(article, "paragraphs", path, where, &paragraphs, err) : SL_DATA;
        json_array_foreach((json_t *)paragraphs, i, p) {
            snprintf(where, sizeof where, "data[%zu].paragraphs[%zu].", a, i);
            context = rc ? NULL : text_of(p, "context", path, where, err);
            if (!rc)
                rc = context ? list_of(p, "qas", path, where, &qas, err) : SL_DATA;
            json_array_foreach((json_t *)qas, k, qa) {
                if (rc || (out->max && out->rows == out->max))
                    break;
                snprintf(where, sizeof where, "data[%zu].paragraphs[%zu].qas[%zu].", a, i, k);
                rc = add_question(out, how, squad->topic ? title : NULL, context, qa, path, where,
                                  err);
            }
            if (rc)
                break;
        }
    }
    return rc;
}

/* ---- files ---- */

static int write_file(const struct sl_squad *squad, const char *source, const json_t *articles,
                      size_t from, size_t to, enum answers how, int max, const char *file,
                      int *ret_rows, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct out out = {.max = max};
    int rc = sl_path(path, err, "%s/%s_%s.jsonl", squad->out_dir, squad->name, file);

    sl_buf_init(&out.text, SL_SQUAD_OUT_MAX);
    if (!rc)
        rc = add_articles(squad, source, articles, from, to, how, &out, err);
    if (!rc)
        rc = sl_file_write(path, out.text.p, out.text.len, err);
    if (!rc && ret_rows)
        *ret_rows = out.rows;
    sl_buf_release(&out.text);
    return rc;
}

int sl_squad_write(const struct sl_squad *squad, int ret_rows[SL_SQUAD_FILES], struct sl_err *err)
{
    const char *held = squad->dev ? squad->dev : squad->train; /* the file of val and test */
    size_t train_n, n, val_from, test_from;
    json_t *json = NULL, *dev_json = NULL;
    const json_t *articles = NULL, *dev = NULL;
    int rows[SL_SQUAD_FILES] = {0}, rc = read_file(squad->train, &json, &articles, err);

    if (!rc && squad->dev)
        rc = read_file(squad->dev, &dev_json, &dev, err);
    else
        dev = articles;
    train_n = json_array_size(articles);
    n = json_array_size(dev);
    val_from = test_from = 0;
    if (!rc && !squad->dev) {
        size_t val = (size_t)squad->validation_articles, test = (size_t)squad->test_articles;

        if (val + test >= n)
            rc = sl_err_set(
                err, SL_SPEC,
                "%s has %zu articles: %zu for validation and %zu for test leave none to train with",
                squad->train, n, val, test);
        else
            test_from = n - test, val_from = train_n = test_from - val;
    }
    if (!rc)
        rc = sl_mkdirs(squad->out_dir, err);
    if (!rc)
        rc = write_file(squad, squad->train, articles, 0, train_n, FIRST, 0, "train",
                        &rows[SL_SQUAD_TRAIN], err);
    if (!rc)
        rc = write_file(squad, held, dev, val_from, squad->dev ? n : test_from, FIRST, 0, "val",
                        &rows[SL_SQUAD_VAL], err);
    if (!rc)
        rc = write_file(squad, held, dev, test_from, n, NONE, 0, "test", &rows[SL_SQUAD_TEST], err);
    if (!rc)
        rc = write_file(squad, held, dev, test_from, n, ALL, 0, "test_ground_truth", NULL, err);
    if (!rc && squad->subset)
        rc = write_file(squad, squad->train, articles, 0, train_n, FIRST, squad->subset,
                        "short_train", &rows[SL_SQUAD_SHORT_TRAIN], err);
    if (!rc && squad->subset >= SHORT_VAL_PART)
        rc =
            write_file(squad, held, dev, val_from, squad->dev ? n : test_from, FIRST,
                       squad->subset / SHORT_VAL_PART, "short_val", &rows[SL_SQUAD_SHORT_VAL], err);
    json_decref(json);
    json_decref(dev_json);
    if (!rc)
        memcpy(ret_rows, rows, sizeof rows);
    return rc;
}

/* ---- the subcommand ---- */

static const char usage[] = "usage: softlaunch data squad --train FILE (--dev FILE | --articles "
                            "VALIDATION,TEST) --out DIR\n"
                            "                             [--name NAME] [--topic] [--subset N]\n"
                            "  --train, --dev FILE  SQuAD's JSON, v1.1 or v2.0; validation and "
                            "test rows are both of the dev file\n"
                            "  --articles V,T       without a dev file: validation rows from the V "
                            "articles before the last T of the train\n"
                            "                       file, test rows from those T\n"
                            "  --name NAME          files are DIR/NAME_train.jsonl, _val, _test, "
                            "_test_ground_truth (default: squad)\n"
                            "  --topic              rows hold the article's title as \"topic\"\n"
                            "  --subset N           also NAME_short_train.jsonl, the first N rows, "
                            "and NAME_short_val.jsonl, the first N/10\n";

static bool parse_int(const char *text, int *ret)
{
    int used = 0;

    return sscanf(text, "%9d%n", ret, &used) == 1 && !text[used] && *ret > 0;
}

static bool parse_articles(const char *text, struct sl_squad *s)
{
    int used = 0;

    return sscanf(text, "%9d,%9d%n", &s->validation_articles, &s->test_articles, &used) == 2 &&
           !text[used] && s->validation_articles >= 0 && s->test_articles >= 0;
}

int sl_data_squad(int argc, char **argv)
{
    static const struct option options[] = {
        {"train", 1, NULL, 't'},    {"dev", 1, NULL, 'd'},   {"out", 1, NULL, 'o'},
        {"name", 1, NULL, 'n'},     {"topic", 0, NULL, 'p'}, {"subset", 1, NULL, 's'},
        {"articles", 1, NULL, 'a'}, {"help", 0, NULL, 'h'},  {NULL, 0, NULL, 0}};
    struct sl_squad squad = {.name = "squad"};
    struct sl_err err = SL_ERR_INIT;
    bool ok = true, articles = false;
    int o, rows[SL_SQUAD_FILES];

    optind = 1;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 't')
            squad.train = optarg;
        else if (o == 'd')
            squad.dev = optarg;
        else if (o == 'o')
            squad.out_dir = optarg;
        else if (o == 'n')
            squad.name = optarg;
        else if (o == 'p')
            squad.topic = true;
        else if (o == 's')
            ok = parse_int(optarg, &squad.subset) && ok;
        else if (o == 'a')
            articles = true, ok = parse_articles(optarg, &squad) && ok;
        else if (o == 'h')
            return fputs(usage, stdout), 0;
        else
            ok = false;
    }
    if (!ok || !squad.train || !squad.out_dir || optind < argc || articles == (squad.dev != NULL)) {
        fputs(usage, stderr);
        return 2;
    }
    if (sl_squad_write(&squad, rows, &err)) {
        fprintf(stderr, "softlaunch data squad: %s\n", err.msg);
        return 1;
    }
    for (int i = 0; i < SL_SQUAD_FILES; i++)
        if (i <= SL_SQUAD_TEST || rows[i])
            printf("%s/%s_%s.jsonl: %d rows\n", squad.out_dir, squad.name, sl_squad_files[i],
                   rows[i]);
    return 0;
}

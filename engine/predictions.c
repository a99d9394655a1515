/* Tables of predictions, and the answers that they are compared with. */
#include "base/file.h"
#include "base/json.h"
#include "engine/generate.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREDICTIONS_FILE_MAX (1u << 30)

int sl_row_answers(const struct sl_dataset *ds, char ***ret_answers, struct sl_err *err)
{
    int n = sl_dataset_rows(ds), rc = 0;
    char **answers = calloc((size_t)n + 1, sizeof *answers);

    for (int i = 0; answers && i < n && !rc; i++) {
        const json_t *value;
        json_t *row = NULL;

        rc = sl_dataset_json(ds, i, &row, err);
        value = json_object_get(row, sl_dataset_answer_field(ds, i));
        if (json_is_array(value))
            value = json_array_get(value, 0);
        if (json_is_string(value))
            answers[i] = strdup(json_string_value(value));
        else if (value && !json_is_null(value))
            answers[i] = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        else
            answers[i] = strdup("");
        json_decref(row);
        if (!rc && !answers[i])
            rc = sl_err_set(err, SL_NOMEM, "no memory for the answers");
    }
    if (!answers)
        return sl_err_set(err, SL_NOMEM, "no memory for the answers");
    if (rc)
        sl_texts_free(answers, n);
    else
        *ret_answers = answers;
    return rc;
}

static json_t *prediction(const struct sl_predictions *p, int i, struct sl_err *err)
{
    static const char *const kept[] = {"id", "taskname", "context", "question", "answer"};
    json_t *row = NULL, *out = json_object();

    if (!out || sl_dataset_json(p->ds, i, &row, err)) {
        json_decref(out);
        return NULL;
    }
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
        if (json_object_get(row, kept[k]))
            json_object_set(out, kept[k], json_object_get(row, kept[k]));
    json_decref(row);
    json_object_set_new(out, "prediction", json_string(p->text[i]));
    if (p->choice && p->choice[i])
        json_object_set_new(out, "choice", json_string(p->choice[i]));
    if (p->untuned)
        json_object_set_new(out, "untuned", json_string(p->untuned[i]));
    return out;
}

int sl_write_predictions(const char *path, const struct sl_predictions *p, struct sl_err *err)
{
    struct sl_buf buf;
    int rc = 0;

    sl_buf_init(&buf, PREDICTIONS_FILE_MAX);
    for (int i = 0; i < sl_dataset_rows(p->ds) && !rc; i++) {
        json_t *row = prediction(p, i, err);
        char *line = row ? json_dumps(row, JSON_COMPACT) : NULL;

        rc = line ? sl_buf_addf(&buf, "%s\n", line) : SL_NOMEM;
        free(line);
        json_decref(row);
    }
    if (rc)
        sl_err_set(err, rc, "no memory for the prediction table");
    else
        rc = sl_file_write(path, buf.p, buf.len, err);
    sl_buf_release(&buf);
    return rc;
}

static void print_cell(const char *text, int width)
{
    int shown = 0;

    for (; *text && shown < width; text++) {
        unsigned char c = (unsigned char)*text;

        putchar(c < ' ' ? ' ' : c);
        shown += (c & 0xc0) != 0x80; /* one column a character: close enough for a preview */
    }
    while (*text && ((unsigned char)*text & 0xc0) == 0x80)
        putchar(*text++);
    printf("%*s  ", width - shown, "");
}

void sl_print_predictions(const struct sl_predictions *p)
{
    const struct {
        const char *key;
        int width;
        bool there;
    } columns[] = {{"context", 44, true},     {"question", 30, true},
                   {"answer", 14, true},      {"prediction", 14, true},
                   {"choice", 14, p->choice}, {"untuned", 14, p->untuned}};
    int n = sl_dataset_rows(p->ds);

    for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
        if (columns[c].there)
            printf("%-*s  ", columns[c].width, columns[c].key);
    putchar('\n');
    for (int i = 0; i < n && i < SL_TABLE_ROWS; i++) {
        json_t *row = prediction(p, i, NULL);

        for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
            if (columns[c].there)
                print_cell(sl_json_str(row, columns[c].key, ""), columns[c].width);
        putchar('\n');
        json_decref(row);
    }
    if (n > SL_TABLE_ROWS)
        printf("... and %d more rows\n", n - SL_TABLE_ROWS);
}

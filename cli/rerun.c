/* `softlaunch runs rerun|compare|metrics`. */
#include "base/file.h"
#include "base/json.h"
#include "base/tfevents.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rerun and compare ----------------------------------------------------------------------- */

static void print_value(const json_t *v)
{
    char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);

    printf("%.200s", json_is_string(v) ? json_string_value(v) : text ? text : "?");
    free(text);
}

static void print_comparison(const json_t *c)
{
    json_t *d;
    size_t i;
    const json_t *all = json_object_get(c, "differences");

    puts(sl_json_bool(c, "same", false) ? "the same prompt tables, bit for bit" : "the prompt tables differ");
    if (!sl_json_bool(c, "same", false))
        json_array_foreach(json_object_get(c, "tables"), i, d)
            printf("  %s: sha256 was %.12s, is %.12s\n", sl_json_str(d, "path", "?"), sl_json_str(d, "was", "-"),
                   sl_json_str(d, "is", "-"));
    json_array_foreach((json_t *)(uintptr_t)all, i, d)
    {
        printf("  %s was ", sl_json_str(d, "what", "?"));
        print_value(json_object_get(d, "was"));
        fputs(", is ", stdout);
        print_value(json_object_get(d, "is"));
        putchar('\n');
    }
    if (!sl_json_bool(c, "same", false) && !json_array_size(all))
        puts("  nothing that the runs record differs: not what is promised; please report it");
}

int cli_compare_runs(struct sl_api *api, const char *first, const char *second, bool json, struct sl_err *err)
{
    char a[SL_ID_HEX + 1], b[SL_ID_HEX + 1], path[160];
    json_t *reply = NULL;
    int rc = cli_find_run(api, first, a, err);

    if (!rc)
        rc = cli_find_run(api, second, b, err);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/runs/%s/compare?with=%s", a, b);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &reply, err);
    if (!rc && json)
        cli_print_json(reply);
    else if (!rc)
        print_comparison(reply);
    json_decref(reply);
    return rc;
}

int cli_rerun(struct sl_api *api, const char *text, const char *key, bool wait, bool json, struct sl_err *err)
{
    const struct cli_follow how = {.follow = true, .quiet = true};
    char run[SL_ID_HEX + 1], again[SL_ID_HEX + 1], path[128], random[SL_ID_HEX + 1], state[32];
    json_t *reply = NULL;
    int rc = cli_find_run(api, text, run, err);

    sl_random_id(random); /* so that our own tries after a lost answer make one run */
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/runs/%s/rerun", run);
    rc = sl_api_call(api, "POST", path, key ? key : random, NULL, &reply, err);
    if (rc)
        return rc;
    snprintf(again, sizeof again, "%s", sl_json_str(reply, "run", ""));
    if (!wait && json)
        cli_print_json(reply);
    else if (!wait || !json)
        puts(again);
    fflush(stdout);
    json_decref(reply);
    if (!wait)
        return 0;
    rc = cli_follow_run(api, again, &how, state, err);
    if (!rc && strcmp(state, "succeeded") != 0)
        rc = sl_err_set(err, SL_DATA, "run %s: %s; `softlaunch runs show %.12s` tells why", again, state, again);
    return rc ? rc : cli_compare_runs(api, run, again, json, err);
}

/* ---- metrics --------------------------------------------------------------------------------- */

typedef int event_fn(void *arg, const json_t *event, struct sl_err *err);

static int each_event(struct sl_api *api, const char *run, event_fn *fn, void *arg, struct sl_err *err)
{
    char path[160], last[64] = "0";
    int rc = 0;
    size_t n;

    do {
        json_t *page = NULL, *e;
        size_t i;
        snprintf(path, sizeof path, "/api/v1/runs/%s/events?after=%s", run, last);
        rc = sl_api_call(api, "GET", path, NULL, NULL, &page, err);
        if (rc)
            return rc;
        n = json_array_size(json_object_get(page, "events"));
        json_array_foreach(json_object_get(page, "events"), i, e)
            rc = rc ? rc : fn(arg, e, err);
        snprintf(last, sizeof last, "%.63s", sl_json_str(page, "last", "0"));
        json_decref(page);
    } while (!rc && n);
    return rc;
}

/* A metric event's {"time_ms", "attempt", ...data}. */
static int add_row(void *rows, const json_t *e, struct sl_err *err)
{
    json_t *row;

    if (strcmp(sl_json_str(e, "type", ""), "metric") != 0)
        return 0;
    row = json_pack("{s:O*, s:O*}", "time_ms", json_object_get(e, "time_ms"), "attempt", json_object_get(e, "attempt"));
    if (!row || json_object_update(row, json_object_get(e, "data")) || json_array_append_new(rows, row))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return 0;
}

static int add_tfevent(void *tfevents, const json_t *event, struct sl_err *err)
{
    return sl_tfevents_add(tfevents, event, err);
}

int cli_run_tensorboard(struct sl_api *api, const char *text, const char *dir, struct sl_err *err)
{
    char run[SL_ID_HEX + 1], place[SL_PATH_MAX];
    struct sl_tfevents *t = NULL;
    int rc = cli_find_run(api, text, run, err);

    if (!rc)
        rc = sl_path(place, err, "%s/%s", dir, run);
    if (!rc)
        rc = sl_tfevents_new(run, &t, err);
    if (!rc)
        rc = each_event(api, run, add_tfevent, t, err);
    if (!rc)
        rc = sl_tfevents_write(t, place, err);
    sl_tfevents_free(t);
    if (!rc)
        puts(place);
    return rc;
}

/* A field as RFC 4180 has it. */
static void print_field(const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, stdout);
        return;
    }
    putchar('"');
    for (; *text; text++) {
        if (*text == '"')
            putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void print_csv(const json_t *rows)
{
    static const char *const first[] = {"time_ms", "attempt", "trial", "epoch", "step"};
    json_t *columns = json_array(), *seen = json_object(), *row, *value, *column;
    const char *key;
    size_t i, k;

    json_array_foreach((json_t *)(uintptr_t)rows, i, row)
        json_object_foreach(row, key, value)
            json_object_set_new(seen, key, json_true());
    for (k = 0; k < sizeof first / sizeof *first; k++)
        if (json_object_get(seen, first[k])) {
            json_array_append_new(columns, json_string(first[k]));
            json_object_del(seen, first[k]);
        }
    json_object_foreach(seen, key, value)
        json_array_append_new(columns, json_string(key));
    json_array_foreach(columns, k, column)
    {
        fputs(k ? "," : "", stdout);
        print_field(json_string_value(column));
    }
    fputs("\r\n", stdout);
    json_array_foreach((json_t *)(uintptr_t)rows, i, row)
    {
        json_array_foreach(columns, k, column)
        {
            value = json_object_get(row, json_string_value(column));
            char *text = value && !json_is_string(value) ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
            fputs(k ? "," : "", stdout);
            if (json_is_string(value) || text)
                print_field(text ? text : json_string_value(value));
            free(text);
        }
        fputs("\r\n", stdout);
    }
    json_decref(seen);
    json_decref(columns);
}

int cli_run_metrics(struct sl_api *api, const char *text, bool csv, struct sl_err *err)
{
    char run[SL_ID_HEX + 1];
    json_t *rows = json_array(), *row;
    size_t i;
    int rc = cli_find_run(api, text, run, err);

    if (!rc)
        rc = each_event(api, run, add_row, rows, err);
    if (!rc && csv) {
        print_csv(rows);
    } else if (!rc) {
        json_array_foreach(rows, i, row)
        {
            json_dumpf(row, stdout, JSON_COMPACT);
            putchar('\n');
        }
    }
    json_decref(rows);
    return rc;
}

#include "cli/runs_list.h"
#include "base/buf.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 200        /* runs that the server gives at once */
#define PATH_MAX_BYTES 8192

static void print_age(int64_t ms)
{
    int64_t s = ms > 0 ? sl_now_us() / 1000000 - ms / 1000 : 0;

    if (ms <= 0)
        printf(" %6s", "-");
    else if (s < 120)
        printf(" %5llds", (long long)(s > 0 ? s : 0));
    else if (s < 7200)
        printf(" %5lldm", (long long)s / 60);
    else if (s < 172800)
        printf(" %5lldh", (long long)s / 3600);
    else
        printf(" %5lldd", (long long)s / 86400);
}

static void print_list(const json_t *page)
{
    json_t *r;
    size_t i;

    printf("%-12s %-24s %-10s %-9s %-10s %7s %13s %9s %6s\n", "RUN", "NAME", "QUEUE", "PRIORITY",
           "STATE", "ATTEMPT", "STEP", "VAL_LOSS", "AGE");
    json_array_foreach(json_object_get(page, "runs"), i, r) {
        const char *phase = sl_json_str(r, "phase", "");
        char step[32] = "-", loss[24] = "-";
        if (sl_json_int(r, "step", -1) >= 0)
            snprintf(step, sizeof step, "%lld/%lld", (long long)sl_json_int(r, "step", 0),
                     (long long)sl_json_int(r, "steps", 0));
        if (json_is_number(sl_json_get(r, "metrics.val_loss")))
            snprintf(loss, sizeof loss, "%.4f", sl_json_num(r, "metrics.val_loss", 0));
        printf("%-12.12s %-24.24s %-10.10s %-9s %-10s %7lld %13s %9s", sl_json_str(r, "run", ""),
               sl_json_str(r, "name", ""), sl_json_str(r, "queue", ""),
               sl_json_str(r, "priority", ""), *phase ? phase : sl_json_str(r, "state", ""),
               (long long)sl_json_int(r, "attempt", 0), step, loss);
        print_age(sl_json_int(r, "created_ms", 0));
        putchar('\n');
    }
}

static void add(struct sl_buf *path, const char *key, const char *value)
{
    char *escaped = *value ? sl_api_escape(value) : NULL;

    if (escaped)
        sl_buf_addf(path, "&%s=%s", key, escaped);
    free(escaped);
}

int cli_list_runs(struct sl_api *api, const struct cli_runs_query *query, bool json, struct sl_err *err)
{
    json_t *all = json_pack("{s:[], s:n}", "runs", "next_cursor"), *page;
    json_t *runs = json_object_get(all, "runs");
    int left = query->limit, rc = 0;
    struct sl_buf path, tags;

    sl_buf_init(&path, PATH_MAX_BYTES);
    sl_buf_init(&tags, PATH_MAX_BYTES);
    for (int i = 0; i < query->tags->n; i++)
        sl_buf_addf(&tags, "%s%s", i ? "," : "", query->tags->items[i]);
    do {
        sl_buf_reset(&path);
        sl_buf_addf(&path, "/api/v1/runs?limit=%d", left < PAGE ? left : PAGE);
        add(&path, "state", query->state);
        add(&path, "queue", query->queue);
        add(&path, "project", query->project);
        add(&path, "tag", tags.p);
        add(&path, "q", query->q);
        add(&path, "sort", query->sort);
        add(&path, "cursor", sl_json_str(all, "next_cursor", ""));
        rc = sl_api_call(api, "GET", path.p, NULL, NULL, &page, err);
        if (rc)
            break;
        json_array_extend(runs, json_object_get(page, "runs"));
        json_object_del(page, "runs");
        json_object_update(all, page);
        json_decref(page);
        left = query->limit - (int)json_array_size(runs);
    } while (*sl_json_str(all, "next_cursor", "") && left > 0);
    sl_buf_release(&path);
    sl_buf_release(&tags);
    if (!rc && json)
        cli_print_json(all);
    else if (!rc)
        print_list(all);
    json_decref(all);
    return rc;
}

int cli_note_run(struct sl_api *api, const char *text, const char *note, const struct cli_list *tags,
                 bool json, struct sl_err *err)
{
    char run[SL_ID_HEX + 1], path[128];
    json_t *body = json_object(), *list = json_array(), *reply = NULL;
    int rc = cli_find_run(api, text, run, err);

    for (int i = 0; i < tags->n; i++)
        if (*tags->items[i])
            json_array_append_new(list, json_string(tags->items[i]));
    if (tags->n)
        json_object_set(body, "tags", list);
    if (note)
        json_object_set_new(body, "notes", json_string(note));
    if (!rc) {
        snprintf(path, sizeof path, "/api/v1/runs/%s", run);
        rc = sl_api_call(api, "PATCH", path, run, body, &reply, err); /* may be sent twice */
    }
    if (!rc && json)
        cli_print_json(reply);
    json_decref(reply);
    json_decref(list);
    json_decref(body);
    return rc;
}

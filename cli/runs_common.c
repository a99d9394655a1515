#include "cli/runs_common.h"
#include "base/json.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIND_PAGE 200 /* runs looked through that have what was given somewhere */
#define FIND_MAX 128  /* bytes of a name */
#define BAR_CELLS 24
#define METRIC_PERIOD_US INT64_C(5000000) /* between lines of numbers when there is no terminal */

bool cli_is_final(const char *state)
{
    static const char *const final[] = {"succeeded", "failed", "dead", "cancelled"};

    for (size_t i = 0; i < sizeof final / sizeof *final; i++)
        if (!strcmp(state, final[i]))
            return true;
    return false;
}

void cli_print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
}

int cli_find_run(struct sl_api *api, const char *text, char ret_run[SL_ID_HEX + 1],
                 struct sl_err *err)
{
    size_t len = strlen(text), i;
    const char *found = NULL;
    json_t *page, *r;
    char path[512], *escaped;
    int rc;

    if (len == SL_ID_HEX && strspn(text, "0123456789abcdef") == len) {
        memcpy(ret_run, text, SL_ID_HEX + 1);
        return 0;
    }
    escaped = len <= FIND_MAX ? sl_api_escape(text) : NULL;
    if (!escaped)
        return sl_err_set(err, SL_NOTFOUND, "no run has the id or name %.80s", text);
    snprintf(path, sizeof path, "/api/v1/runs?limit=%d&q=%s", FIND_PAGE, escaped);
    free(escaped);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &page, err);
    if (rc)
        return rc;
    json_array_foreach(json_object_get(page, "runs"), i, r) {
        const char *id = sl_json_str(r, "run", "");
        if (!strcmp(sl_json_str(r, "name", ""), text)) {
            found = found ? found : id;
        } else if (len >= 4 && !strncmp(id, text, len)) {
            if (found && strncmp(found, text, len) == 0)
                rc = sl_err_set(err, SL_CONFLICT, "several runs begin with %s: give more of the id",
                                text);
            found = id;
        }
    }
    if (!rc && !found)
        rc = sl_err_set(err, SL_NOTFOUND, "no run has the id or name %s", text);
    if (!rc)
        snprintf(ret_run, SL_ID_HEX + 1, "%s", found);
    json_decref(page);
    return rc;
}

/* ---- printing events
 * --------------------------------------------------------------------------------------- */

struct view {
    const struct cli_follow *how;
    bool terminal, line_open; /* a line of numbers that is being rewritten */
    bool outputs;             /* they are in the store */
    int64_t steps, first_step, start_ms, metric_us;
};

static void close_line(struct view *v)
{
    if (v->line_open)
        putchar('\n');
    v->line_open = false;
}

static void print_state(struct view *v, const json_t *e)
{
    const char *cause = sl_json_str(e, "data.cause", ""), *msg = sl_json_str(e, "data.msg", "");
    const char *agent = sl_json_str(e, "data.agent", "");

    close_line(v);
    printf("-- %s%s%s%s%s%s%s%s\n", sl_json_str(e, "data.state", "?"), *agent ? " on " : "", agent,
           *cause ? " (" : "", cause, *cause ? ")" : "", *msg ? ": " : "", msg);
}

/* A training step: on a terminal one line that is rewritten, else a line now and then. */
static void print_step(struct view *v, const json_t *e)
{
    const json_t *d = json_object_get(e, "data");
    int64_t step = sl_json_int(d, "step", 0), done = step - v->first_step;
    char bar[BAR_CELLS + 1];
    int cells = v->steps > 0 ? (int)(step * BAR_CELLS / v->steps) : 0;

    if (!v->terminal && sl_boot_us() - v->metric_us < METRIC_PERIOD_US)
        return;
    v->metric_us = sl_boot_us();
    memset(bar, '.', BAR_CELLS);
    memset(bar, '#', (size_t)(cells < 0 ? 0 : cells > BAR_CELLS ? BAR_CELLS : cells));
    bar[BAR_CELLS] = 0;
    if (v->terminal)
        printf("\r\033[K[%s] ", bar);
    printf("step %lld/%lld  loss %.4f", (long long)step, (long long)v->steps,
           sl_json_num(d, "loss", 0));
    if (json_object_get(d, "tokens_per_s"))
        printf("  %.0f tokens/s", sl_json_num(d, "tokens_per_s", 0));
    if (done > 0 && v->steps > step && v->start_ms) {
        int64_t left_s =
            (sl_json_int(e, "time_ms", 0) - v->start_ms) * (v->steps - step) / done / 1000;
        printf("  %lldm%02llds left", (long long)left_s / 60, (long long)left_s % 60);
    }
    v->line_open = v->terminal;
    if (!v->line_open)
        putchar('\n');
}

static void print_metric(struct view *v, const json_t *e)
{
    const json_t *d = json_object_get(e, "data");
    const char *key, *trial = sl_json_str(d, "trial", "");
    json_t *value;

    if (json_object_get(d, "loss")) {
        print_step(v, e);
        return;
    }
    if (json_object_get(d, "system/cpu_percent")) /* of the machine: for charts and `runs metrics` */
        return;
    close_line(v);
    if (json_object_get(d, "val_loss")) {
        printf("%s%sstep %lld/%lld  val_loss %.4f%s\n", trial, *trial ? ": " : "",
               (long long)sl_json_int(d, "step", 0), (long long)v->steps, sl_json_num(d, "val_loss", 0),
               sl_json_bool(d, "best", false) ? ", the best so far" : "");
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)d, key, value)
        if (json_is_number(value) && strcmp(key, "step") != 0)
            printf("   %s%s%-44s %.4f\n", trial, *trial ? " " : "", key, json_number_value(value));
}

static void print_event(struct view *v, const json_t *e)
{
    const char *type = sl_json_str(e, "type", "");

    if (v->how->quiet)
        return;
    if (v->how->json) {
        if (v->how->logs && strcmp(type, "log") != 0)
            return;
        char *text = sl_json_dump(e);
        puts(text ? text : "{}");
        free(text);
    } else if (!strcmp(type, "log")) {
        const char *level = sl_json_str(e, "data.level", "info");
        close_line(v);
        printf("%s%s%s\n", strcmp(level, "info") ? level : "", strcmp(level, "info") ? ": " : "",
               sl_json_str(e, "data.msg", ""));
    } else if (v->how->logs) {
        return;
    } else if (!strcmp(type, "state")) {
        print_state(v, e);
    } else if (!strcmp(type, "phase")) {
        close_line(v);
        printf("-- %s\n", sl_json_str(e, "data.phase", "?"));
    } else if (!strcmp(type, "start")) {
        v->steps = sl_json_int(e, "data.steps", 0);
        v->first_step = sl_json_int(e, "data.step", 0);
        v->start_ms = sl_json_int(e, "time_ms", 0);
    } else if (!strcmp(type, "metric")) {
        print_metric(v, e);
    } else if (!strcmp(type, "checkpoint")) {
        close_line(v);
        printf("-- checkpoint of step %lld stored\n", (long long)sl_json_int(e, "data.step", 0));
    }
    fflush(stdout);
}

/* ---- following
 * --------------------------------------------------------------------------------------------- */

static int get_state(struct sl_api *api, const char *run, char *ret_state, struct sl_err *err)
{
    char path[128];
    json_t *r;
    int rc;

    snprintf(path, sizeof path, "/api/v1/runs/%s", run);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &r, err);
    if (rc)
        return rc;
    snprintf(ret_state, 32, "%s", sl_json_str(r, "state", ""));
    json_decref(r);
    return 0;
}

/* A run has succeeded a moment before its outputs are in the store: its end is when they can be fetched. */
static bool is_over(const struct view *v, const char *state)
{
    return cli_is_final(state) && (v->outputs || strcmp(state, "succeeded") != 0);
}

/* One read of events; *ret_n how many there were. */
static int read_events(struct sl_api *api, const char *run, struct view *v, char last[64],
                       int *ret_n, char *state, struct sl_err *err)
{
    char path[256];
    json_t *page, *e;
    size_t i;
    int rc;

    snprintf(path, sizeof path, "/api/v1/runs/%s/events?after=%s&wait_ms=%d", run, last,
             v->how->follow && !is_over(v, state) ? 1000 : 0);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &page, err);
    if (rc)
        return rc;
    json_array_foreach(json_object_get(page, "events"), i, e) {
        print_event(v, e);
        const char *type = sl_json_str(e, "type", "");
        if (!strcmp(type, "state"))
            snprintf(state, 32, "%s", sl_json_str(e, "data.state", ""));
        v->outputs |= !strcmp(type, "outputs");
    }
    *ret_n = (int)json_array_size(json_object_get(page, "events"));
    snprintf(last, 64, "%s", sl_json_str(page, "last", "0"));
    json_decref(page);
    return 0;
}

int cli_follow_run(struct sl_api *api, const char *run, const struct cli_follow *how,
                   char *ret_state, struct sl_err *err)
{
    struct view v = {.how = how, .terminal = isatty(STDOUT_FILENO)};
    char last[64] = "0", state[32] = "";
    int64_t away_us = 0, final_us = 0;
    int n = 0, rc = 0;

    for (;;) {
        struct sl_err fault = SL_ERR_INIT;
        rc = read_events(api, run, &v, last, &n, state, &fault);
        if (!rc && n == 0)
            rc = get_state(api, run, state, &fault);
        if (rc == SL_RETRY && how->follow) {
            if (!away_us) {
                close_line(&v);
                fprintf(stderr, "softlaunch: waiting for the server: %s\n", fault.msg);
                away_us = sl_boot_us();
            }
            if (sl_boot_us() - away_us < CLI_FOLLOW_AWAY_S * INT64_C(1000000)) {
                usleep(1000000);
                continue;
            }
        }
        if (rc) {
            rc = sl_err_set(err, rc, "%s", fault.msg);
            break;
        }
        away_us = 0;
        if (n == 0 && (!how->follow || is_over(&v, state)))
            break;
        if (!cli_is_final(state))
            final_us = 0;
        else if (!final_us)
            final_us = sl_boot_us();
        else if (sl_boot_us() - final_us > CLI_FOLLOW_AWAY_S * INT64_C(1000000)) {
            rc = sl_err_set(err, SL_RETRY,
                            "run %s has succeeded, but its outputs are not in the store yet: the "
                            "server's log tells why",
                            run);
            break;
        }
    }
    close_line(&v);
    if (!rc)
        snprintf(ret_state, 32, "%s", state);
    return rc;
}

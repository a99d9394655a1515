#include "engine/emit.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/wire.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_WIDTH 24
#define LINE_EVERY_US 5000000 /* without a terminal: one progress line in this time */

void sl_emit_init(struct sl_emitter *r, int events_fd)
{
    *r = (struct sl_emitter){.events_fd = events_fd,
                            .terminal = events_fd < 0 && isatty(STDERR_FILENO),
                            .started_us = sl_boot_us(),
                            .loss = NAN,
                            .val_loss = NAN};
}

static void clear_bar(struct sl_emitter *r)
{
    if (r->bar_drawn)
        fputs("\r\033[K", stderr);
    r->bar_drawn = false;
}

static void draw(struct sl_emitter *r)
{
    double share = r->steps > 0 ? (double)r->step / (double)r->steps : 0;
    int filled = (int)(share * BAR_WIDTH);
    int64_t now = sl_boot_us(), done = r->step - r->first_step;
    double left_s = done > 0 ? (double)(now - r->started_us) / 1e6 / (double)done *
                                   (double)(r->steps - r->step)
                             : 0;
    char bar[BAR_WIDTH + 1];

    if (!r->terminal && now - r->last_line_us < LINE_EVERY_US && r->step != r->steps)
        return;
    r->last_line_us = now;
    memset(bar, '-', BAR_WIDTH);
    memset(bar, '#', (size_t)(filled > BAR_WIDTH ? BAR_WIDTH : filled));
    bar[BAR_WIDTH] = '\0';
    clear_bar(r);
    fprintf(stderr, "[%s] step %lld/%lld  loss %.4f", bar, (long long)r->step, (long long)r->steps,
            r->loss);
    if (!isnan(r->val_loss))
        fprintf(stderr, "  val_loss %.4f", r->val_loss);
    fprintf(stderr, "  %.0f tokens/s  %d:%02d left%s", r->tokens_per_s, (int)(left_s / 60),
            (int)left_s % 60, r->terminal ? "" : "\n");
    r->bar_drawn = r->terminal;
    fflush(stderr);
}

static void show_metric(struct sl_emitter *r, const json_t *event)
{
    const char *trial = sl_json_str(event, "trial", NULL);
    double loss = sl_json_num(event, "loss", r->loss), val = sl_json_num(event, "val_loss", NAN),
           rate = sl_json_num(event, "tokens_per_s", 0);
    int64_t step = sl_json_int(event, "step", r->step);
    bool more = trial && step == r->step; /* another trial's numbers of the step */

    if (trial && !more && r->step > r->first_step) /* now those of the step before are complete */
        draw(r);
    r->loss = more ? fmin(r->loss, loss) : loss;
    if (!isnan(val))
        r->val_loss = more ? fmin(r->val_loss, val) : val;
    if (json_object_get(event, "tokens_per_s"))
        r->tokens_per_s = more ? r->tokens_per_s + rate : rate;
    r->step = step;
    if (trial && !isnan(val)) {
        clear_bar(r);
        fprintf(stderr, "trial %s: step %lld  val_loss %.4f\n", trial, (long long)step, val);
    }
    if (!trial)
        draw(r);
}

static void show(struct sl_emitter *r, const json_t *event)
{
    const char *ev = sl_json_str(event, "ev", "");

    if (!strcmp(ev, "start")) {
        r->steps = sl_json_int(event, "steps", 0);
        r->step = r->first_step = sl_json_int(event, "step", 0);
        r->started_us = sl_boot_us();
    } else if (!strcmp(ev, "metric")) {
        show_metric(r, event);
    } else if (!strcmp(ev, "log")) {
        clear_bar(r);
        fprintf(stderr, "%s\n", sl_json_str(event, "msg", ""));
    } else if (!strcmp(ev, "progress")) {
        if (r->terminal) {
            clear_bar(r);
            fprintf(stderr, "%s %lld/%lld", sl_json_str(event, "phase", ""),
                    (long long)sl_json_int(event, "done", 0),
                    (long long)sl_json_int(event, "total", 0));
            r->bar_drawn = true;
            fflush(stderr);
        }
    } else if (!strcmp(ev, "result")) {
        clear_bar(r);
        fprintf(stderr, "%s%s%s\n", sl_json_str(event, "state", "ended"),
                sl_json_get(event, "msg") ? ": " : "", sl_json_str(event, "msg", ""));
    }
}

void sl_emit(struct sl_emitter *r, json_t *event)
{
    if (!event)
        return;
    if (r->events_fd < 0)
        show(r, event);
    sl_wire_send(r->events_fd, event, NULL);
}

void sl_emit_log(struct sl_emitter *r, enum sl_level level, const char *fmt, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char msg[SL_ERR_MSG_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    sl_emit(r, json_pack("{s:s, s:s, s:s}", "ev", "log", "level", names[level], "msg", msg));
}

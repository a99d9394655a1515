#include "engine/plan_main.h"
#include "engine/backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The device by its name, here or not. */
static int find_device(const struct sl_trainer_options *o, enum sl_precision precision,
                       struct sl_plan_device *ret, struct sl_err *err)
{
    struct sl_plan_device device = {.precision = precision, .memory_bytes = o->memory_bytes};
    const char *name = o->device ? o->device : getenv("SOFTLAUNCH_DEVICE");
    bool cuda = name && !strncmp(name, "cuda", 4);
    const struct sl_ops *ops;
    struct sl_backend *be;
    struct sl_backend_info info;
    struct sl_err why = SL_ERR_INIT;
    int rc;

    device.accelerator = cuda;
    if (!cuda || !o->memory_bytes) {
        rc = sl_backend_open(name, precision, o->threads, &ops, &be, &why);
        if (rc && (rc != SL_NOTFOUND || !cuda)) /* a GPU may be elsewhere */
            return sl_err_set(err, rc, "%s", why.msg);
        if (!rc) {
            ops->info(be, &info);
            ops->close(be);
            device.accelerator = info.accelerator;
            device.open = !o->memory_bytes;
            device.memory_bytes = o->memory_bytes ? o->memory_bytes : info.memory_bytes;
        }
    }
    *ret = device;
    return 0;
}

static void print(const struct sl_plan *p, bool json)
{
    struct sl_buf text;

    sl_buf_init(&text, (size_t)64 << 10);
    if (json) {
        json_t *j = sl_plan_json(p);
        json_dumpf(j, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(j);
    } else {
        sl_plan_table(p, &text);
        fputs(text.p, stdout);
    }
    sl_buf_release(&text);
}

int sl_plan_run(const char *run_dir, const struct sl_trainer_options *options, bool json)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_emitter report;
    struct sl_run run = {0};
    struct sl_trainer t = {0};
    struct sl_plan_device device;
    struct sl_plan p;
    int rc = sl_run_open(run_dir, &run, &err);

    sl_emit_init(&report, -1);
    if (!rc)
        rc = sl_trainer_look(&t, &run, options, &report, &err);
    if (!rc)
        rc = find_device(options, t.trial[0].config->trainer.precision, &device, &err);
    if (!rc)
        rc = sl_trainer_plan_for(&t, &device, &p, &err);
    if (!rc) {
        print(&p, json);
        if (!sl_plan_fits(&p))
            rc = sl_trainer_too_large(&t, &device, &err);
    }
    if (rc)
        fprintf(stderr, "softlaunch train --plan: %s\n", err.msg);
    sl_trainer_release(&t);
    sl_run_release(&run);
    return rc ? 1 : 0;
}

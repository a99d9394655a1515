/* No run is given to a machine that breaks them: devices are tested when the agent starts, and after failures in a row
 * it takes none for a while (the breaker), says why, and comes back by an operator's word or after a test. */
#include "agent/agent_inner.h"
#include "agent/device_test.h"
#include "base/json.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quarantine(struct sl_agent *a, const char *why);

int sl_agent_test_devices(struct sl_agent *a, struct sl_err *err)
{
    struct sl_devices found, good = {0};
    struct sl_err failed = SL_ERR_INIT;
    int64_t smallest = 0;

    sl_devices_find(getenv("CUDA_VISIBLE_DEVICES"), "/dev", &found);
    for (int i = 0; i < found.n; i++) {
        json_t *about = NULL;
        int64_t bytes;
        int rc = sl_device_test(a->worker, "cuda", found.id[i], &about, err);

        if (rc && rc != SL_DEVICE)
            return rc;
        if (!rc && !sl_json_bool(about, "ok", false)) {
            rc = SL_DEVICE;
            sl_err_clear(err);
            sl_err_set(err, rc, "%s", sl_json_str(about, "msg", "the self-test failed"));
        }
        if (rc) {
            sl_log(SL_ERROR, NULL, "GPU %s is not used: %s", found.id[i], err->msg);
            sl_err_clear(&failed);
            sl_err_set(&failed, rc, "GPU %s: %s", found.id[i], err->msg);
            sl_err_clear(err);
        } else {
            bytes = sl_json_int(about, "memory_bytes", 0);
            smallest = !good.n || bytes < smallest ? bytes : smallest;
            memcpy(good.id[good.n++], found.id[i], sizeof found.id[i]);
        }
        json_decref(about);
    }
    a->devices = good;
    sl_gpus_stop(a->gpus);
    a->gpus = NULL;
    a->gpu_memory_gib = (int)(smallest >> 30);
    if (found.n && !good.n)
        quarantine(a, failed.msg);
    return good.n ? sl_gpus_start(&good, &a->gpus, err) : 0;
}

void sl_agent_return(struct sl_agent *a, const char *why)
{
    struct sl_err err = SL_ERR_INIT;

    sl_loop_timer_cancel(a->loop, a->quarantine_timer);
    a->quarantine_timer = -1;
    if (!a->quarantine[0])
        return;
    a->quarantine[0] = 0;
    a->device_failures = 0;
    /* The test blocks: with runs under way their next failure is the test. */
    if (!sl_agent_busy(a) && sl_agent_test_devices(a, &err))
        quarantine(a, err.msg);
    if (a->quarantine[0])
        return;
    sl_log(SL_INFO, NULL, "takes runs again: %s", why);
    sl_agent_heartbeat(a);
    sl_agent_look(a);
}

static void quarantine_due(void *arg)
{
    struct sl_agent *a = arg;

    a->quarantine_timer = -1;
    sl_agent_return(a, "the quarantine is over, and the devices passed their test");
}

static void quarantine(struct sl_agent *a, const char *why)
{
    snprintf(a->quarantine, sizeof a->quarantine, "%s", why);
    sl_utf8_trim(a->quarantine);
    sl_log(SL_ERROR, NULL, "takes no runs for %.0f s: %s", (double)a->config->quarantine_us / 1e6, a->quarantine);
    sl_agent_timer(a, &a->quarantine_timer, a->config->quarantine_us, quarantine_due);
}

void sl_agent_device_failed(struct sl_agent *a, const char *msg)
{
    char why[512];

    if (++a->device_failures < SL_AGENT_BREAKER || a->quarantine[0])
        return;
    snprintf(why, sizeof why, "%d device failures in a row, the last: %s", a->device_failures, msg);
    quarantine(a, why);
    sl_agent_heartbeat(a);
}

void sl_agent_device_good(struct sl_agent *a)
{
    a->device_failures = 0;
}

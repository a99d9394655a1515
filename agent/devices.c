#include "agent/devices.h"
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void add(struct sl_devices *d, const char *id, size_t len)
{
    memcpy(d->id[d->n], id, len);
    d->id[d->n++][len] = '\0';
}

static void from_list(const char *list, struct sl_devices *d)
{
    while (*list && d->n < SL_DEVICES_MAX) {
        size_t len = strcspn(list, ",");
        const char *id = list;

        list += len + (list[len] == ',');
        while (len && isspace((unsigned char)*id))
            id++, len--;
        while (len && isspace((unsigned char)id[len - 1]))
            len--;
        if (!len || len >= SL_DEVICE_ID_MAX || !isalnum((unsigned char)*id))
            return;
        add(d, id, len);
    }
}

void sl_devices_find(const char *visible, const char *dev, struct sl_devices *ret_devices)
{
    struct sl_devices d = {0};

    if (visible)
        from_list(visible, &d);
    for (int i = 0; !visible && i < SL_DEVICES_MAX; i++) {
        char path[4096], number[16];
        int n = snprintf(path, sizeof path, "%s/nvidia%d", dev, i);

        if (n < 0 || (size_t)n >= sizeof path || access(path, F_OK))
            continue;
        /* CUDA counts what is there, without gaps. */
        n = snprintf(number, sizeof number, "%d", d.n);
        add(&d, number, (size_t)n);
    }
    *ret_devices = d;
}

void sl_devices_names(const struct sl_devices *d, uint64_t bits, char ret_names[SL_DEVICES_TEXT_MAX])
{
    size_t len = 0;

    ret_names[0] = 0;
    for (int i = 0; i < d->n; i++)
        if (bits >> i & 1)
            len += (size_t)snprintf(ret_names + len, SL_DEVICES_TEXT_MAX - len, "%s%s", len ? "," : "", d->id[i]);
}

int sl_devices_pick(const struct sl_devices *d, uint64_t busy, int n, uint64_t *ret_taken, struct sl_err *err)
{
    uint64_t taken = 0;
    int found = 0, n_free = 0;

    for (int i = 0; i < d->n; i++) {
        if (busy >> i & 1)
            continue;
        n_free++;
        if (found == n)
            continue;
        taken |= UINT64_C(1) << i;
        found++;
    }
    if (found < n)
        return sl_err_set(
            err, SL_RETRY,
            "the run asks for %d GPUs (resources.gpus); this machine has %d, and %d of them free",
            n, d->n, n_free);
    *ret_taken = taken;
    return 0;
}

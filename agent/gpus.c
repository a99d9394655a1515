#include "agent/gpus.h"
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Of nvml.h, whose binary interface is stable. Every function returns 0 when it did what it says. */
#define NVML "libnvidia-ml.so.1"
#define UUID_MAX 96
typedef void *nvml_device;
struct nvml_rates {
    unsigned gpu, memory; /* percent of the time */
};
struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml {
    int (*init)(void);
    int (*count)(unsigned *);
    int (*by_index)(unsigned, nvml_device *);
    int (*by_uuid)(const char *, nvml_device *);
    int (*uuid)(nvml_device, char *, unsigned);
    int (*rates)(nvml_device, struct nvml_rates *);
    int (*memory)(nvml_device, struct nvml_memory *);
};

struct seen {
    double percents, memory_bytes;
    int n_percents, n;
};

struct sl_gpus {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t watched;
    struct seen seen[SL_DEVICES_MAX];
    struct sl_devices devices;
    bool ending;
    int holders; /* the agent and the thread: the last one frees */
};

static bool load(struct nvml *n)
{
    const struct {
        const char *name;
        void *to;
    } functions[] = {{"nvmlInit_v2", &n->init},
                     {"nvmlDeviceGetCount_v2", &n->count},
                     {"nvmlDeviceGetHandleByIndex_v2", &n->by_index},
                     {"nvmlDeviceGetHandleByUUID", &n->by_uuid},
                     {"nvmlDeviceGetUUID", &n->uuid},
                     {"nvmlDeviceGetUtilizationRates", &n->rates},
                     {"nvmlDeviceGetMemoryInfo", &n->memory}};
    void *library = dlopen(NVML, RTLD_NOW | RTLD_LOCAL);

    if (!library)
        return false;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *f = dlsym(library, functions[i].name);

        if (!f)
            return false;
        memcpy(functions[i].to, &f, sizeof f);
    }
    return n->init() == 0;
}

/* id: as in CUDA_VISIBLE_DEVICES, a number or the beginning of a UUID. Numbers are NVML's: CUDA counts in the same
 * order where all GPUs are alike, or with CUDA_DEVICE_ORDER=PCI_BUS_ID. */
static nvml_device find(const struct nvml *n, const char *id)
{
    nvml_device d = NULL;
    char uuid[UUID_MAX];
    unsigned count = 0;

    if (isdigit((unsigned char)*id))
        return n->by_index((unsigned)strtoul(id, NULL, 10), &d) ? NULL : d;
    if (!n->by_uuid(id, &d))
        return d;
    if (n->count(&count))
        return NULL;
    for (unsigned i = 0; i < count; i++)
        if (!n->by_index(i, &d) && !n->uuid(d, uuid, sizeof uuid) && !strncmp(uuid, id, strlen(id)))
            return d;
    return NULL;
}

/* Whether the driver says what a device does now. */
static bool look(const struct nvml *n, nvml_device d, struct sl_gpu_use *ret_use)
{
    struct nvml_rates rates;
    struct nvml_memory memory;

    if (n->memory(d, &memory))
        return false;
    ret_use->memory_bytes = (double)memory.used;
    ret_use->percent = n->rates(d, &rates) ? -1 : (double)rates.gpu;
    return true;
}

static void drop(struct sl_gpus *g) /* with the mutex held */
{
    bool last = --g->holders == 0;

    pthread_mutex_unlock(&g->mutex);
    if (!last)
        return;
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    free(g);
}

static void add(struct seen *seen, const struct sl_gpu_use *use)
{
    seen->n++;
    if (use->memory_bytes > seen->memory_bytes)
        seen->memory_bytes = use->memory_bytes;
    if (use->percent < 0)
        return;
    seen->percents += use->percent;
    seen->n_percents++;
}

/* With the mutex held, which is let go while the driver is asked. */
static void look_at_all(struct sl_gpus *g, const struct nvml *n, const nvml_device *devices)
{
    for (int i = 0; i < g->devices.n && !g->ending; i++) {
        struct sl_gpu_use use;

        if (!devices[i] || !(g->watched >> i & 1))
            continue;
        pthread_mutex_unlock(&g->mutex);
        bool known = look(n, devices[i], &use);
        pthread_mutex_lock(&g->mutex);
        if (known && g->watched >> i & 1)
            add(&g->seen[i], &use);
    }
}

static void *watcher(void *arg)
{
    struct sl_gpus *g = arg;
    nvml_device devices[SL_DEVICES_MAX] = {NULL};
    struct nvml n;
    bool there = load(&n);

    for (int i = 0; there && i < g->devices.n; i++)
        devices[i] = find(&n, g->devices.id[i]);
    pthread_mutex_lock(&g->mutex);
    while (there && !g->ending) {
        struct timespec at;

        if (!g->watched) {
            pthread_cond_wait(&g->changed, &g->mutex);
            continue;
        }
        look_at_all(g, &n, devices);
        clock_gettime(CLOCK_MONOTONIC, &at);
        at.tv_sec += SL_GPUS_PERIOD_MS / 1000;
        while (!g->ending && pthread_cond_timedwait(&g->changed, &g->mutex, &at) != ETIMEDOUT)
            ;
    }
    drop(g);
    return NULL;
}

static int start_thread(struct sl_gpus *g)
{
    pthread_attr_t detached;
    sigset_t all, before;
    pthread_t thread;
    int failed;

    sigfillset(&all);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the loop's */
    failed = pthread_create(&thread, &detached, watcher, g);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return failed;
}

int sl_gpus_start(const struct sl_devices *d, struct sl_gpus **ret_gpus, struct sl_err *err)
{
    struct sl_gpus *g = calloc(1, sizeof *g);
    pthread_condattr_t clock;
    int failed;

    if (!g)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    g->devices = *d;
    g->holders = 2;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&g->changed, &clock);
    pthread_condattr_destroy(&clock);
    failed = start_thread(g);
    if (failed) {
        g->holders = 1;
        pthread_mutex_lock(&g->mutex);
        drop(g);
        errno = failed;
        return sl_err_errno(err, "starting the thread that watches GPUs");
    }
    *ret_gpus = g;
    return 0;
}

void sl_gpus_stop(struct sl_gpus *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->mutex);
    g->ending = true;
    pthread_cond_signal(&g->changed);
    drop(g);
}

void sl_gpus_watch(struct sl_gpus *g, uint64_t bits, bool on)
{
    if (!g || !bits)
        return;
    pthread_mutex_lock(&g->mutex);
    for (int i = 0; i < g->devices.n; i++)
        if (bits >> i & 1)
            g->seen[i] = (struct seen){0};
    g->watched = on ? g->watched | bits : g->watched & ~bits;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

bool sl_gpus_read(struct sl_gpus *g, int device, struct sl_gpu_use *ret_use)
{
    struct seen seen;

    if (!g)
        return false;
    pthread_mutex_lock(&g->mutex);
    seen = g->seen[device];
    g->seen[device] = (struct seen){0};
    pthread_mutex_unlock(&g->mutex);
    if (!seen.n)
        return false;
    *ret_use = (struct sl_gpu_use){seen.n_percents ? seen.percents / seen.n_percents : -1, seen.memory_bytes};
    return true;
}

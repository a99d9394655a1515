/* A device that fails on request: built as libsoftlaunch-cuda.so to lie beside a worker, where it
 * stands before the CPU's operations, or before the real library when SL_FAULT_LIBRARY names its
 * file.
 *
 * The file that SL_FAULT_FILE names holds "KIND AT", read when the backend is opened; without it
 * nothing fails. At the AT-th step (for out_of_memory: allocation), from 1: out_of_memory    all of
 * the device's memory is taken, then the allocation is made illegal_address  a kernel reads where
 * nothing is device_lost      the next check finds the driver's error code of a device that is gone
 * On the CPU the errors of ops.h are returned in their place. */
#include "engine/backend.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES_UNAVAILABLE 46 /* cudaErrorDevicesUnavailable */
#define HOG_LARGEST ((size_t)64 << 30)
#define HOG_SMALLEST ((size_t)1 << 20)
#define NOWHERE ((void *)(uintptr_t)4096)

typedef void inject_fn(int error);

static const struct sl_ops *base;
static inject_fn *inject; /* NULL: the CPU */
static struct sl_ops table;
static char kind[32];
static int at, allocations, steps;

static bool due(const char *what, int count)
{
    return !strcmp(kind, what) && count == at;
}

static int open_it(const struct sl_backend_opts *opts, struct sl_backend **ret_be,
                   struct sl_err *err)
{
    const char *path = getenv("SL_FAULT_FILE");
    FILE *f = path ? fopen(path, "re") : NULL;
    struct sl_backend_opts cpu = *opts;

    if (f && fscanf(f, "%31s %d", kind, &at) != 2)
        kind[0] = '\0';
    if (f)
        fclose(f);
    cpu.precision = inject ? opts->precision : SL_PRECISION_FP32;
    return base->open(&cpu, ret_be, err);
}

static int alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    void *hog;

    if (!due("out_of_memory", ++allocations))
        return base->alloc(be, bytes, ret_p, err);
    for (size_t n = HOG_LARGEST; inject && n >= HOG_SMALLEST;)
        if (base->alloc(be, n, &hog, NULL))
            n /= 2;
    return base->alloc(be, inject ? bytes : SIZE_MAX / 8, ret_p, err);
}

static void step_begin(struct sl_backend *be, uint64_t bucket)
{
    steps++;
    base->step_begin(be, bucket);
    if (inject && due("illegal_address", steps))
        base->zero(be, NOWHERE, 0), base->to_f32(be, NOWHERE, 1024, NOWHERE);
    if (inject && due("device_lost", steps))
        inject(DEVICES_UNAVAILABLE);
}

static int step_end(struct sl_backend *be, struct sl_err *err)
{
    int rc = base->step_end(be, err);

    if (!rc && !inject && due("illegal_address", steps))
        rc =
            sl_err_set(err, SL_FAULT, "GPU 0: an illegal memory access was encountered (a test's)");
    if (!rc && !inject && due("device_lost", steps))
        rc = sl_err_set(err, SL_DEVICE, "GPU 0: the device is gone (a test's)");
    return rc;
}

__attribute__((visibility("default"))) sl_cuda_ops_fn sl_cuda_ops;

const struct sl_ops *sl_cuda_ops(unsigned abi, size_t ops_bytes, int fp32)
{
    const char *path = getenv("SL_FAULT_LIBRARY");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    sl_cuda_ops_fn *entry = library ? (sl_cuda_ops_fn *)dlsym(library, SL_CUDA_ENTRY) : NULL;

    if (abi != SL_CUDA_ABI || ops_bytes != sizeof table || (path && !entry)) {
        if (path && !library)
            fprintf(stderr, "%s\n", dlerror());
        return NULL;
    }
    base = path ? entry(abi, ops_bytes, fp32) : &sl_cpu_ops;
    inject = path ? (inject_fn *)dlsym(library, "sl_cuda_inject") : NULL;
    if (!base || (path && !inject))
        return NULL;
    table = *base;
    table.open = open_it;
    table.alloc = alloc;
    table.step_replay = NULL; /* every step passes through here */
    table.step_begin = step_begin;
    table.step_end = step_end;
    return &table;
}

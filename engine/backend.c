#include "engine/backend.h"
#include "base/file.h"
#include "base/proc.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static int find_library(const char *where, char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    static const char *const places[] = {"", "../lib/softlaunch/"};
    char dir[SL_PATH_MAX];
    int rc = where ? sl_path(dir, err, "%s", where) : sl_self_dir(dir, sizeof dir, err);

    for (size_t i = 0; !rc && i < sizeof places / sizeof *places; i++) {
        rc = sl_path(ret_path, err, "%s/%s%s", dir, places[i], SL_CUDA_LIBRARY);
        if (!rc && sl_file_exists(ret_path))
            return 0;
    }
    return rc ? rc
              : sl_err_set(err, SL_NOTFOUND, "%s is not installed in %s",
                           SL_CUDA_LIBRARY, dir);
}

int sl_backend_cuda(const char *dir, bool fp32, const struct sl_ops **ret_ops, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    void *library;
    sl_cuda_ops_fn *entry;
    const struct sl_ops *ops;
    int rc = find_library(dir, path, err);

    if (rc)
        return rc;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* never closed: the table lives in it */
    if (!library)
        return sl_err_set(err, SL_NOTFOUND, "loading %s: %s", path, dlerror());
    entry = (sl_cuda_ops_fn *)dlsym(library, SL_CUDA_ENTRY);
    ops = entry ? entry(SL_CUDA_ABI, sizeof *ops, fp32) : NULL;
    if (!ops)
        return sl_err_set(err, SL_SPEC, "%s belongs to another version of softlaunch-worker; install both from "
                          "one build", path);
    *ret_ops = ops;
    return 0;
}

static int open_cuda(int number, enum sl_precision precision, int threads, const struct sl_ops **ret_ops,
                     struct sl_backend **ret_be, struct sl_err *err)
{
    struct sl_backend_opts opts = {.threads = threads, .device = number, .precision = precision};
    const struct sl_ops *ops;
    int rc = sl_backend_cuda(NULL, precision == SL_PRECISION_FP32, &ops, err);

    if (!rc)
        rc = ops->open(&opts, ret_be, err);
    if (!rc)
        *ret_ops = ops;
    return rc;
}

static int open_cpu(enum sl_precision precision, int threads, const struct sl_ops **ret_ops, struct sl_backend **ret_be,
                    struct sl_err *err)
{
    struct sl_backend_opts opts = {.threads = threads, .precision = precision};
    int rc = sl_cpu_ops.open(&opts, ret_be, err);

    if (!rc)
        *ret_ops = &sl_cpu_ops;
    return rc;
}

int sl_backend_open(const char *device, enum sl_precision precision, int threads, const struct sl_ops **ret_ops,
                    struct sl_backend **ret_be, struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    char *end = NULL;
    long number = 0;
    int rc;

    if (!device)
        device = getenv("SOFTLAUNCH_DEVICE");
    if (device && strcmp(device, "cpu") == 0)
        return open_cpu(precision, threads, ret_ops, ret_be, err);
    if (!device || strcmp(device, "auto") == 0) {
        rc = open_cuda(0, precision, threads, ret_ops, ret_be, &why);
        if (rc == SL_NOTFOUND)
            return open_cpu(precision, threads, ret_ops, ret_be, err);
        return rc ? sl_err_set(err, rc, "%s (--device cpu does without the GPU)", why.msg) : 0;
    }
    if (strncmp(device, "cuda:", 5) == 0)
        number = strtol(device + 5, &end, 10);
    if (strcmp(device, "cuda") != 0 &&
        (!end || end == device + 5 || *end || number < 0 || number > INT32_MAX))
        return sl_err_set(err, SL_SPEC, "device '%s': expected auto, cpu, cuda or cuda:N", device);
    return open_cuda((int)number, precision, threads, ret_ops, ret_be, err);
}

#include "engine/selftest.h"
#include "engine/backend.h"
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 256
#define INNER 1024
#define COLS 512
#define VALUE_MAX 4         /* products of INNER such pairs stay below 2^24: exact in fp32 */
#define BF16_ROUNDING 0.004 /* 2^-8 */

static const char usage[] = "usage: softlaunch-worker selftest [--device auto|cpu|cuda|cuda:N] [--json]\n";

struct product {
    float x[ROWS * INNER], w[COLS * INNER], y[ROWS * COLS], want[ROWS * COLS];
};

static void fill(float *p, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        p[i] = (float)((int)((seed >> 33) % (2 * VALUE_MAX + 1)) - VALUE_MAX);
    }
}

static void multiply(struct product *p)
{
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) {
            float sum = 0;
            for (int k = 0; k < INNER; k++)
                sum += p->x[r * INNER + k] * p->w[c * INNER + k];
            p->want[r * COLS + c] = sum;
        }
}

static int read_weight(void *ctx, int64_t row0, int64_t n, float *out, struct sl_err *err)
{
    const struct product *p = ctx;

    (void)err;
    memcpy(out, p->w + row0 * INNER, (size_t)n * INNER * sizeof *out);
    return 0;
}

/* p->y = the product as the device computes it. */
static int on_device(const struct sl_ops *ops, struct sl_backend *be, struct product *p, struct sl_err *err)
{
    void *x32 = NULL, *x = NULL, *y = NULL, *y32 = NULL;
    struct sl_weight *w = NULL;
    int rc = ops->weight_new(be, COLS, INNER, read_weight, p, &w, err);

    if (!rc)
        rc = ops->alloc(be, sizeof p->x, &x32, err);
    if (!rc)
        rc = ops->alloc(be, ROWS * INNER * ops->act_bytes, &x, err);
    if (!rc)
        rc = ops->alloc(be, ROWS * COLS * ops->act_bytes, &y, err);
    if (!rc)
        rc = ops->alloc(be, sizeof p->y, &y32, err);
    if (!rc)
        rc = ops->upload(be, x32, p->x, sizeof p->x, err);
    if (!rc) {
        ops->from_f32(be, x32, ROWS * INNER, x);
        ops->matmul(be, x, INNER, ROWS, w, NULL, NULL, 0, y, COLS);
        ops->to_f32(be, y, ROWS * COLS, y32);
        rc = ops->download(be, p->y, y32, sizeof p->y, err);
    }
    ops->free(be, y32);
    ops->free(be, y);
    ops->free(be, x);
    ops->free(be, x32);
    ops->weight_free(be, w);
    return rc;
}

static int compare(const struct product *p, double rounding, struct sl_err *err)
{
    size_t wrong = 0, first = 0;

    for (size_t i = ROWS * COLS; i-- > 0;)
        if (!(fabs((double)p->y[i] - (double)p->want[i]) <= rounding * fabs((double)p->want[i]))) {
            wrong++;
            first = i;
        }
    if (!wrong)
        return 0;
    return sl_err_set(err, SL_DEVICE, "%zu of %d numbers of a product are wrong, the first at row %zu, column %zu: %g "
                      "where %g is right. Take this device out of use.",
                      wrong, ROWS * COLS, first / COLS, first % COLS, (double)p->y[first], (double)p->want[first]);
}

int sl_selftest(const struct sl_ops *ops, struct sl_backend *be, struct sl_err *err)
{
    struct product *p = calloc(1, sizeof *p);
    int rc;

    if (!p)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    fill(p->x, ROWS * INNER, 1);
    fill(p->w, COLS * INNER, 2);
    multiply(p);
    rc = on_device(ops, be, p, err);
    if (!rc)
        rc = compare(p, ops->act_bytes < sizeof(float) ? BF16_ROUNDING : 0, err);
    free(p);
    return rc;
}

static int test(const char *device, enum sl_precision precision, const char **ret_name,
                struct sl_backend_info *ret_info, struct sl_err *err)
{
    const struct sl_ops *ops;
    struct sl_backend *be;
    int rc = sl_backend_open(device, precision, 0, &ops, &be, err);

    if (rc)
        return rc;
    ops->info(be, ret_info);
    *ret_name = ops->name;
    rc = sl_selftest(ops, be, err);
    ops->close(be);
    return rc;
}

int sl_selftest_main(int argc, char **argv)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *device = NULL, *name = "none";
    struct sl_backend_info info = {.kernel = ""};
    struct sl_err err = SL_ERR_INIT;
    int c, rc, json = 0;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'd')
            device = optarg;
        else if (c == 'j')
            json = 1;
        else {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (optind != argc) {
        fputs(usage, stderr);
        return 2;
    }
    rc = test(device, SL_PRECISION_FP32, &name, &info, &err);
    if (!rc)
        rc = test(device, SL_PRECISION_BF16, &name, &info, &err);
    if (json) {
        json_t *o = json_pack("{s:b, s:s, s:s, s:I, s:s, s:s}", "ok", !rc, "device", name, "kernel",
                              info.kernel, "memory_bytes", (json_int_t)info.memory_bytes, "code",
                              rc ? sl_code_name(rc) : "", "msg", err.msg);
        json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(o);
    } else if (rc) {
        fprintf(stderr, "softlaunch-worker selftest: %s\n", err.msg);
    } else {
        printf("%s (%s) multiplies right\n", name, info.kernel);
    }
    return rc != 0;
}

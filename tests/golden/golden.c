#include "tests/golden/golden.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn static void missing(const char *path, const char *what, const char *name)
{
    fprintf(stderr, "%s: %s%s\n", path, what, name);
    exit(2);
}

void golden_path(char ret_path[SL_PATH_MAX], const char *name)
{
    const char *dir = getenv("SL_GOLDEN_DIR");
    snprintf(ret_path, SL_PATH_MAX, "%s/%s", dir ? dir : "tests/golden", name);
}

void golden_open(struct golden *g, const char *name)
{
    struct sl_err err = SL_ERR_INIT;
    golden_path(g->path, name);
    if (sl_map_open(g->path, &g->map, &err))
        missing(g->path, err.msg, "");
    uint64_t len;
    if (g->map.len < sizeof len)
        missing(g->path, "no header", "");
    memcpy(&len, g->map.data, sizeof len); /* little endian, as every machine that we build for */
    if (len > g->map.len - sizeof len)
        missing(g->path, "header longer than the file", "");
    if (sl_json_parse((const char *)g->map.data + sizeof len, len, g->path, &g->header, &err))
        missing(g->path, err.msg, "");
    g->data = g->map.data + sizeof len + len;
}

void golden_close(struct golden *g)
{
    json_decref(g->header);
    sl_map_close(&g->map);
}

static const void *tensor(const struct golden *g, const char *name, const char *dtype,
                          int64_t *ret_n)
{
    const json_t *t = json_object_get(g->header, name);
    if (!t)
        missing(g->path, "no tensor ", name);
    const char *type = json_string_value(json_object_get(t, "dtype"));
    const json_t *at = json_object_get(t, "data_offsets");
    int64_t begin = json_integer_value(json_array_get(at, 0));
    int64_t end = json_integer_value(json_array_get(at, 1));
    int64_t room = (int64_t)g->map.len - (g->data - g->map.data);
    if (!type || strcmp(type, dtype))
        missing(g->path, "another type than expected: ", name);
    if (begin < 0 || end < begin || end > room || begin % 4 || (uintptr_t)g->data % 4)
        missing(g->path, "out of the file: ", name);
    if (ret_n)
        *ret_n = (end - begin) / 4;
    return g->data + begin;
}

const float *golden_f32(const struct golden *g, const char *name, int64_t *ret_n)
{
    return tensor(g, name, "F32", ret_n);
}

const int32_t *golden_i32(const struct golden *g, const char *name, int64_t *ret_n)
{
    return tensor(g, name, "I32", ret_n);
}

const char *golden_meta(const struct golden *g, const char *key)
{
    const json_t *meta = json_object_get(g->header, "__metadata__");
    const char *value = json_string_value(json_object_get(meta, key));
    if (!value)
        missing(g->path, "no metadata key ", key);
    return value;
}

double golden_meta_num(const struct golden *g, const char *key)
{
    return strtod(golden_meta(g, key), NULL);
}

double golden_distance(const float *a, const float *b, int64_t n)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(a[i]))
            return INFINITY;
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(diff) / (norm > 0 ? sqrt(norm) : 1);
}

double golden_worst(double a, double b)
{
    if (isnan(a) || isnan(b))
        return INFINITY;
    return a > b ? a : b;
}

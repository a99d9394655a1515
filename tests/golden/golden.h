/* Reader of the recorded references: safetensors files under tests/golden, each tensor by its name.
 *
 * What the tensors mean is said in the script that wrote the file (make_*.py). Only F32 and I32.
 * The file is mapped; tensors point into the map. A missing file, name or metadata key ends the
 * test program with exit status 2 and a message: a golden test without its reference must not pass.
 */
#ifndef SL_TESTS_GOLDEN_H
#define SL_TESTS_GOLDEN_H
#include "base/file.h"
#include "base/json.h"
#include <stdint.h>

struct golden {
    char path[SL_PATH_MAX];
    struct sl_map map;
    json_t *header;
    const unsigned char *data;
};

/* name: a file of tests/golden, found below the current folder or below the folder SL_GOLDEN_DIR.
 */
void golden_path(char ret_path[SL_PATH_MAX], const char *name);
void golden_open(struct golden *g, const char *name);
void golden_close(struct golden *g);
/* ret_n (may be NULL): elements. */
const float *golden_f32(const struct golden *g, const char *name, int64_t *ret_n);
const int32_t *golden_i32(const struct golden *g, const char *name, int64_t *ret_n);
const char *golden_meta(const struct golden *g, const char *key);
double golden_meta_num(const struct golden *g, const char *key);
/* || a - b || / || b ||, the relative L2 distance of a from the reference b. Not finite a:
 * infinity. */
double golden_distance(const float *a, const float *b, int64_t n);
/* The greater of two distances; infinity if one is not a number. */
double golden_worst(double a, double b);

#endif

/* The CUDA tables of a test program, or why it cannot run. */
#ifndef SL_TESTS_GPU_FIXTURE_H
#define SL_TESTS_GPU_FIXTURE_H
#include "engine/backend.h"
#include <stdio.h>
#include <stdlib.h>

#define EXIT_NOT_RUN 77

static const struct sl_ops *tables[2]; /* fp32, bf16 */

/* 0, or the exit status of a program whose n_tests cannot run: said on standard output. */
static int find_gpu(size_t n_tests)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend *be = NULL;
    int rc = sl_backend_cuda(getenv("SL_BIN"), true, &tables[0], &err);

    if (!rc)
        rc = sl_backend_cuda(getenv("SL_BIN"), false, &tables[1], &err);
    if (!rc)
        rc = tables[0]->open(&(struct sl_backend_opts){0}, &be, &err);
    if (rc) {
        printf("%zu tests need a GPU: %s\n", n_tests, err.msg);
        return rc == SL_NOTFOUND ? EXIT_NOT_RUN : 1;
    }
    tables[0]->close(be);
    return 0;
}

#endif

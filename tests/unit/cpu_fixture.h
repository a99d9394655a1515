/* The CPU backend, opened for a group of tests. Include after cmocka. */
#ifndef SL_TESTS_CPU_FIXTURE_H
#define SL_TESTS_CPU_FIXTURE_H
#include "engine/ops.h"

static struct sl_backend *be;
static const struct sl_ops *ops = &sl_cpu_ops;

static int open_backend(void **state)
{
    struct sl_backend_opts opts = {.threads = 2};

    (void)state;
    return ops->open(&opts, &be, NULL);
}

static int close_backend(void **state)
{
    (void)state;
    ops->close(be);
    return 0;
}

#endif

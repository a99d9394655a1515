/* A small encoder on the CPU backend, for the encoder tests. Include after cmocka. */
#ifndef SL_TESTS_ENCODER_FIXTURE_H
#define SL_TESTS_ENCODER_FIXTURE_H
#include "tests/unit/cpu_fixture.h"

static struct sl_encoder *make(struct sl_encoder_config c)
{
    struct sl_encoder *e = NULL;
    struct sl_err err = SL_ERR_INIT;

    if (sl_encoder_new(&c, ops, be, &e, &err))
        fail_msg("%s", err.msg);
    return e;
}

static float *device(const float *host, size_t n)
{
    void *p;

    assert_int_equal(ops->alloc(be, n * sizeof(float), &p, NULL), 0);
    if (host)
        assert_int_equal(ops->upload(be, p, host, n * sizeof(float), NULL), 0);
    return p;
}

static float *host(const float *p, size_t n)
{
    float *h = malloc(n * sizeof *h);

    assert_non_null(h);
    assert_int_equal(ops->download(be, h, p, n * sizeof *h, NULL), 0);
    return h;
}

static void noise(float *x, size_t n, uint64_t seed)
{
    struct sl_rng rng = sl_rng_new(seed, SL_RNG_DATA);

    for (size_t i = 0; i < n; i++)
        x[i] = (float)sl_rng_normal(&rng);

#endif

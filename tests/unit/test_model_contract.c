/* What a model promises besides its numbers: no allocation or synchronisation within a step, clean
 * failure when memory runs out or the file lacks something, rotary tables as transformers computes
 * them. */
#include "engine/decode.h"
#include "engine/model_parts.h"
#include "tests/unit/tiny_model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const struct tiny llama = {.layers = 3,
                                  .hidden = 32,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .ffn = 48,
                                  .vocab = 40,
                                  .positions = 32,
                                  .untied = true,
                                  .seed = 1};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = 2,
                                 .hidden = 32,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .ffn = 64,
                                 .vocab = 40,
                                 .positions = 24,
                                 .seed = 4};

/* The CPU backend with an eye on who takes memory when, and a supply that can end. */
static struct {
    int live, left, inside; /* buffers and weights alive; allocations until failure (-1: endless);
                               within a step */
} watch;

static int may_allocate(struct sl_err *err)
{
    assert_false(watch.inside);
    if (watch.left == 0)
        return sl_err_set(err, SL_NOMEM, "the test's memory is used up");
    watch.left -= watch.left > 0;
    watch.live++;
    return 0;
}

static int watch_alloc(struct sl_backend *be, size_t bytes, void **ret_p, struct sl_err *err)
{
    int rc = may_allocate(err);
    return rc ? rc : sl_cpu_ops.alloc(be, bytes, ret_p, err);
}

static void watch_free(struct sl_backend *be, void *p)
{
    assert_false(watch.inside);
    watch.live -= p != NULL;
    sl_cpu_ops.free(be, p);
}

static int watch_weight_new(struct sl_backend *be, int64_t rows, int64_t cols,
                            sl_read_rows_fn *read, void *ctx, struct sl_weight **ret_w,
                            struct sl_err *err)
{
    int rc = may_allocate(err);
    return rc ? rc : sl_cpu_ops.weight_new(be, rows, cols, read, ctx, ret_w, err);
}

static int watch_linear_new(struct sl_backend *be, int64_t rows, int64_t cols,
                            sl_read_rows_fn *read, void *ctx, struct sl_weight **ret_w,
                            struct sl_err *err)
{
    int rc = may_allocate(err);
    return rc ? rc : sl_cpu_ops.linear_new(be, rows, cols, read, ctx, ret_w, err);
}

static void watch_weight_free(struct sl_backend *be, struct sl_weight *w)
{
    watch.live--;
    sl_cpu_ops.weight_free(be, w);
}

static int watch_upload(struct sl_backend *be, void *dst, const void *src, size_t bytes,
                        struct sl_err *err)
{
    assert_false(watch.inside);
    return sl_cpu_ops.upload(be, dst, src, bytes, err);
}

static int watch_download(struct sl_backend *be, void *dst, const void *src, size_t bytes,
                          struct sl_err *err)
{
    assert_false(watch.inside);
    return sl_cpu_ops.download(be, dst, src, bytes, err);
}

static void watch_begin(struct sl_backend *be, uint64_t bucket)
{
    assert_false(watch.inside);
    watch.inside = 1;
    sl_cpu_ops.step_begin(be, bucket);
}

static int watch_end(struct sl_backend *be, struct sl_err *err)
{
    assert_true(watch.inside);
    watch.inside = 0;
    return sl_cpu_ops.step_end(be, err);
}

/* An open file and backend under the watching table. */
struct bench {
    struct sl_ops ops;
    struct sl_weights *weights;
    struct sl_backend *be;
    char path[256];
};

static void bench_open(struct bench *b, const struct tiny *config)
{
    struct sl_backend_opts opts = {.threads = 2};
    memset(&watch, 0, sizeof watch);
    watch.left = -1;
    b->ops = sl_cpu_ops;
    b->ops.alloc = watch_alloc;
    b->ops.free = watch_free;
    b->ops.weight_new = watch_weight_new;
    b->ops.linear_new = watch_linear_new;
    b->ops.weight_free = watch_weight_free;
    b->ops.upload = watch_upload;
    b->ops.download = watch_download;
    b->ops.step_begin = watch_begin;
    b->ops.step_end = watch_end;
    tiny_write(config, b->path);
    assert_int_equal(sl_weights_open(b->path, &b->weights, NULL), 0);
    assert_int_equal(sl_cpu_ops.open(&opts, &b->be, NULL), 0);
}

static void bench_close(struct bench *b)
{
    assert_int_equal(watch.live, 0);
    sl_cpu_ops.close(b->be);
    sl_weights_close(b->weights);
    unlink(b->path);
}

static const int32_t ids[2][5] = {{0, -1, -2, 3, 4}, {0, -1, -2, 5, 6}};
static const unsigned char target[5] = {0, 0, 0, 0, 1};
static const struct sl_row rows[2] = {{0, 5, ids[0], target}, {0, 5, ids[1], target}};
static const int v2 = 2;

static void test_steps_neither_allocate_nor_wait(void **state)
{
    (void)state;
    const struct tiny *configs[] = {&llama, &gpt2};
    for (int k = 0; k < 2; k++) {
        struct bench b;
        struct sl_model *m;
        struct sl_batch batch, one;
        struct sl_decode *d;
        float prompts[2 * 32] = {1}, grad[2 * 32], loss[2], logits[2 * 40];
        const int both[] = {0, 1};
        const int32_t token[] = {7, 8};
        bench_open(&b, configs[k]);
        assert_int_equal(sl_model_new(b.weights, &b.ops, b.be, &m, NULL), 0);
        assert_int_equal(sl_batch_pack(rows, 2, &v2, 1, 40, 24, true, 0, &batch, NULL), 0);
        assert_int_equal(sl_batch_pack(rows, 1, &v2, 1, 40, 24, true, 0, &one, NULL), 0);
        assert_int_equal(sl_model_step(m, &batch, prompts, grad, loss, NULL), 0);
        int64_t arena = sl_model_arena_bytes(m);
        assert_true(arena > 0 && sl_model_weight_bytes(m) > 0);
        watch.left = 0; /* the arena is there: smaller batches and repetition need nothing more */
        assert_int_equal(sl_model_step(m, &one, prompts, NULL, loss, NULL), 0);
        assert_true(sl_model_arena_bytes(m) < arena);
        assert_int_equal(sl_model_step(m, &batch, prompts, grad, loss, NULL), 0);
        assert_int_equal(sl_model_arena_bytes(m), arena);
        assert_int_equal(sl_model_logits(m, &one, prompts, logits, NULL), 0);
        watch.left = -1;
        assert_int_equal(sl_decode_new(m, rows, 2, &v2, 1, prompts, 3, logits, &d, NULL), 0);
        watch.left = 0;
        for (int s = 0; s < 3; s++)
            assert_int_equal(sl_decode_step(d, both, token, 2, logits, NULL), 0);
        sl_decode_free(d);
        sl_batch_release(&batch);
        sl_batch_release(&one);
        sl_model_free(m);
        bench_close(&b);
    }
}

/* Memory ends at every place in turn: the error says so, all that was taken is given back, and the
 * next try works. */
static void test_out_of_memory(void **state)
{
    (void)state;
    struct bench b;
    struct sl_model *m = NULL;
    struct sl_batch batch;
    struct sl_decode *d = NULL;
    struct sl_err err = SL_ERR_INIT;
    float prompts[2 * 32] = {1}, grad[2 * 32], loss[2], logits[2 * 40];
    bench_open(&b, &llama);
    int places = 0;
    for (;; places++) {
        watch.left = places;
        int rc = sl_model_new(b.weights, &b.ops, b.be, &m, &err);
        if (!rc)
            break;
        assert_int_equal(rc, SL_NOMEM);
        assert_null(m);
        assert_int_equal(watch.live, 0);
    }
    assert_true(places > 3 * 7);
    int live = watch.live;
    assert_int_equal(sl_batch_pack(rows, 2, &v2, 1, 40, 32, true, 0, &batch, NULL), 0);
    sl_err_clear(&err);
    watch.left = 0;
    assert_int_equal(sl_model_step(m, &batch, prompts, grad, loss, &err), SL_NOMEM);
    assert_non_null(strstr(err.msg, "lower micro_batch_size"));
    watch.left = 1;
    assert_int_equal(sl_model_step(m, &batch, prompts, grad, loss, NULL), 0);
    assert_int_equal(watch.live, live + 1);
    for (places = 0;; places++) {
        sl_err_clear(&err);
        watch.left = places;
        int rc = sl_decode_new(m, rows, 2, &v2, 1, prompts, 3, logits, &d, &err);
        if (!rc)
            break;
        assert_int_equal(rc, SL_NOMEM);
        assert_null(d);
        assert_int_equal(watch.live, live + 1);
    }
    assert_int_equal(places, 3);
    sl_decode_free(d);
    sl_batch_release(&batch);
    sl_model_free(m);
    bench_close(&b);
}

/* transformers 5, LlamaRotaryEmbedding, rope_type llama3, theta 500000, head_dim 64, factor 32, low
 * 1, high 4, 8192: cos and sin of pair i at a position. Pairs 15 to 17 lie between the two
 * wavelengths. */
static void test_llama3_rotary_table(void **state)
{
    (void)state;
    static const struct {
        int pos, pair;
        float cos, sin;
    } hf[] = {
        {1, 0, 0.540302336f, 0.841470957f},
        {1, 15, 0.999999166f, 0.00129054766f},
        {1, 31, 1, 9.41830649e-08f},
        {17, 5, -0.578500509f, 0.815681994f},
        {17, 16, 0.999973357f, 0.00730239926f},
        {100, 0, 0.862318873f, -0.506365657f},
        {100, 14, 0.948874772f, 0.315652847f},
        {100, 15, 0.99168396f, 0.128696859f},
        {100, 16, 0.999077559f, 0.0429424606f},
        {100, 17, 0.999952853f, 0.00970813353f},
        {100, 18, 0.999998093f, 0.00194616255f},
        {100, 25, 1, 0.000110288362f},
    };
    static const struct tiny config = {.layers = 1,
                                       .hidden = 128,
                                       .heads = 2,
                                       .kv_heads = 1,
                                       .ffn = 32,
                                       .vocab = 40,
                                       .positions = 128,
                                       .rope_scaling = "llama3",
                                       .seed = 9};
    struct tiny_model t;
    tiny_open(&config, &t);
    assert_int_equal(sl_model_arch(t.model)->rope_scaling, SL_ROPE_LLAMA3);
    for (size_t k = 0; k < sizeof hf / sizeof *hf; k++) {
        const float *at = t.model->rope + (hf[k].pos * 32 + hf[k].pair) * 2;
        assert_float_equal(at[0], hf[k].cos, 2e-7);
        assert_float_equal(at[1], hf[k].sin, 2e-6 * fabs(hf[k].sin));
    }
    tiny_close(&t);
}

static void test_embedding(void **state)
{
    (void)state;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    const int32_t wanted[] = {3, 0, 39, 3}, bad[] = {1, 40};
    float got[4 * 32], expected[32];
    tiny_open(&llama, &t);
    assert_int_equal(sl_model_embedding(t.model, wanted, 4, got, &err), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(sl_weights_read_f32(t.weights, "embed", wanted[i], 1, expected, &err), 0);
        assert_memory_equal(got + i * 32, expected, sizeof expected);
    }
    assert_int_equal(sl_model_embedding(t.model, bad, 2, got, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "token id 40"));
    tiny_close(&t);
}

/* A model whose file lacks a tensor is refused with the tensor's name, and nothing is left behind.
 */
static void test_missing_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *says;
        bool gpt2;
    } cases[] = {
        {"blk.1.attn_k.weight", "layers.1.k", false},
        {"blk.2.attn_q.weight", "layers.2.q", false},
        {"blk.0.ffn_gate.weight", "layers.0.gate", false},
        {"output_norm.weight", "norm.weight", false},
        {"position_embd.weight", "pos_embed", true},
        {"blk.1.ffn_norm.bias", "layers.1.norm2.bias", true},
    };
    struct sl_backend_opts opts = {.threads = 2};
    struct sl_backend *be;
    assert_int_equal(sl_cpu_ops.open(&opts, &be, NULL), 0);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct tiny config = cases[k].gpt2 ? gpt2 : llama;
        struct sl_err err = SL_ERR_INIT;
        struct sl_weights *w = NULL;
        struct sl_model *m = NULL;
        char path[256];
        config.without = cases[k].tensor;
        tiny_write(&config, path);
        int rc = sl_weights_open(path, &w, &err); /* the reader may notice first */
        if (!rc)
            rc = sl_model_new(w, &sl_cpu_ops, be, &m, &err);
        assert_true(rc < 0);
        assert_null(m);
        if (!strstr(err.msg, cases[k].says) && !strstr(err.msg, cases[k].tensor))
            fail_msg("%s is not named in: %s", cases[k].tensor, err.msg);
        sl_weights_close(w);
        unlink(path);
    }
    sl_cpu_ops.close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_neither_allocate_nor_wait),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_llama3_rotary_table),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_missing_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

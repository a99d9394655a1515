/* What a step keeps and computes: activations to the byte, layers that are computed again to the
 * bit, and the rows that the first and the last layer leave out. */
#include "engine/model_parts.h"
#include "tests/golden/golden_train.h"
#include "tests/unit/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

enum { LAYERS = 5, V = 3, ROWS = 6, MOST = 11, HIDDEN = 32, VOCAB = 40 };

static const struct tiny llama = {.layers = LAYERS,
                                  .hidden = HIDDEN,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .ffn = 48,
                                  .vocab = VOCAB,
                                  .positions = 32,
                                  .untied = true,
                                  .qkv_bias = true,
                                  .seed = 1};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = LAYERS,
                                 .hidden = HIDDEN,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .ffn = 128,
                                 .vocab = VOCAB,
                                 .positions = 32,
                                 .seed = 4};

/* Two slots with a shared prefix each: virtual tokens, two equal ones, then rows of different
 * lengths. */
static void pack(struct sl_batch *ret_batch)
{
    static int32_t id[ROWS][MOST];
    static unsigned char target[ROWS][MOST];
    static const int slot_v[2] = {V, V};
    struct sl_row rows[ROWS];

    memset(target, 0, sizeof target);
    for (int r = 0; r < ROWS; r++) {
        int n = MOST - r % 4;
        for (int i = 0; i < n; i++)
            id[r][i] = i < V ? -(i + 1) : i < V + 2 ? 5 : (r * 7 + i * 3) % 20;
        target[r][n - 1] = target[r][n - 2] = 1;
        rows[r] = (struct sl_row){r % 2, n, id[r], target[r]};
    }
    assert_int_equal(sl_batch_pack(rows, ROWS, slot_v, 2, VOCAB, 32, true, 0, ret_batch, NULL), 0);
}

struct result {
    float loss[2 * ROWS], grad[2 * V * HIDDEN];
    int64_t arena;
};

static void step(struct sl_model *m, struct sl_recompute again, struct result *ret)
{
    struct sl_batch batch;
    float prompts[2 * V * HIDDEN];

    for (int i = 0; i < 2 * V * HIDDEN; i++)
        prompts[i] = (float)((i * 37) % 101 - 50) / 40;
    pack(&batch);
    memset(ret, 0, sizeof *ret);
    sl_model_recompute(m, again);
    assert_int_equal(sl_model_step(m, &batch, prompts, ret->grad, ret->loss, NULL), 0);
    ret->arena = sl_model_arena_bytes(m);
    sl_batch_release(&batch);
}

static void same_bits(struct sl_model *m)
{
    const struct sl_recompute nothing = {0, 0};
    struct result all, some, again;
    int layers = sl_model_arch(m)->layers;
    int64_t before;

    step(m, nothing, &all);
    before = all.arena;
    for (int n = 2; n <= sl_recompute_most(layers); n++) {
        step(m, sl_recompute_at(layers, n), &some);
        assert_memory_equal(all.loss, some.loss, sizeof all.loss);
        assert_memory_equal(all.grad, some.grad, sizeof all.grad);
        assert_true(some.arena < before);
        before = some.arena;
    }
    for (int n = 2; n < layers; n++) { /* whole layers alone */
        step(m, (struct sl_recompute){.whole = n}, &some);
        assert_memory_equal(all.grad, some.grad, sizeof all.grad);
        assert_true(some.arena < all.arena);
    }
    step(m, nothing, &again);
    assert_memory_equal(all.grad, again.grad, sizeof all.grad);
}

static void test_layers_computed_again_give_the_same_bits(void **state)
{
    const struct tiny *configs[] = {&llama, &gpt2};
    static const char *const families[] = {"qwen3", "gpt2"}; /* the first one has norms of heads */
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct tiny_model t;
        tiny_open(configs[k], &t);
        same_bits(t.model);
        tiny_close(&t);
    }
    for (int k = 0; k < 2; k++) {
        struct golden_model gm;
        char name[64], path[SL_PATH_MAX];
        snprintf(name, sizeof name, "families/%s", families[k]);
        golden_path(path, name);
        golden_model_open(&gm, path);
        assert_int_equal(sl_model_arch(gm.model)->hidden, HIDDEN);
        same_bits(gm.model);
        golden_model_close(&gm);
    }
}

/* Elements a token and layer: 10 H for GPT-2 (two residual inputs, Q, K, V, attention's output,
 * before GELU), with H = heads and 4 H the feed-forward size; for Llama two residual inputs, Q,
 * output, K, V, gate and up. And fp32 numbers: mean and rstd twice, log-sum-exp of each head. */
static void test_what_is_kept(void **state)
{
    const struct {
        const struct tiny *config;
        int elements, pre;
    } cases[] = {{&gpt2, 10 * HIDDEN, 4 * HIDDEN}, {&llama, 4 * HIDDEN + 2 * HIDDEN / 2 + 2 * 48, 2 * 48}};
    const int tokens = 64, outs = 64; /* no rounding up */
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct tiny_model t;
        struct sl_batch most = {.n_tokens = tokens,
                                .n_out = outs,
                                .n_entries = outs,
                                .n_virtual = 64,
                                .memory_bytes = 256};
        struct sl_step_bytes all, some;
        int kv = 2 * HIDDEN / 4 * cases[k].config->kv_heads, floats = 4 + 4;
        int64_t layer = (int64_t)tokens * (cases[k].elements + floats) * 4;
        int64_t last = (int64_t)tokens * (HIDDEN + kv + 2) * 4 +
                       (int64_t)outs * (cases[k].elements - HIDDEN - kv + 6) * 4;
        tiny_open(cases[k].config, &t);
        sl_model_step_bytes(t.model, &most, true, (struct sl_recompute){0, 0}, &all);
        assert_int_equal(all.kept, (LAYERS - 1) * layer + last);
        for (int n = 2; n < LAYERS; n++) {
            sl_model_step_bytes(t.model, &most, true, (struct sl_recompute){.whole = n}, &some);
            assert_int_equal(all.kept - some.kept,
                             (n - 1) * (layer - (int64_t)tokens * HIDDEN * 4));
            sl_model_step_bytes(t.model, &most, true, (struct sl_recompute){.mlps = n}, &some);
            assert_int_equal(all.kept - some.kept, (n - 1) * (int64_t)tokens * cases[k].pre * 4);
            assert_int_equal(all.scratch, some.scratch);
        }
        assert_int_equal(all.total, all.batch + all.kept + all.scratch + all.logits);
        tiny_close(&t);
    }
}

/* ---- who multiplies how many rows */

static struct {
    const struct sl_weight *w;
    int64_t rows, rows_back;
} seen[64];
static int n_seen;

static void note(const struct sl_weight *w, int64_t rows, bool back)
{
    int i = 0;
    while (i < n_seen && seen[i].w != w)
        i++;
    assert_true(i < 64);
    n_seen = i < n_seen ? n_seen : i + 1;
    seen[i].w = w;
    *(back ? &seen[i].rows_back : &seen[i].rows) += rows;
}

static void noted_matmul(struct sl_backend *be, const sl_act *x, int64_t ldx, int64_t rows,
                         const struct sl_weight *w, const struct sl_weight *bias, const sl_act *add,
                         int64_t ld_add, sl_act *y, int64_t ldy)
{
    note(w, rows, false);
    sl_cpu_ops.matmul(be, x, ldx, rows, w, bias, add, ld_add, y, ldy);
}

static void noted_back(struct sl_backend *be, const sl_act *dy, int64_t ldy, int64_t rows,
                       const struct sl_weight *w, bool accumulate, sl_act *dx, int64_t ldx)
{
    note(w, rows, true);
    sl_cpu_ops.matmul_back(be, dy, ldy, rows, w, accumulate, dx, ldx);
}

static void expect_rows(const struct sl_weight *w, int64_t rows, int64_t rows_back)
{
    for (int i = 0; i < n_seen; i++)
        if (seen[i].w == w) {
            assert_int_equal(seen[i].rows, rows);
            assert_int_equal(seen[i].rows_back, rows_back);
            return;
        }
    fail_msg("a weight was not used");
}

static void test_rows_left_out(void **state)
{
    const struct tiny *configs[] = {&llama, &gpt2};
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct tiny_model t;
        struct sl_ops ops = sl_cpu_ops;
        struct sl_model *m;
        struct sl_batch b;
        struct result r;
        tiny_open(configs[k], &t);
        ops.matmul = noted_matmul;
        ops.matmul_back = noted_back;
        assert_int_equal(sl_model_new(t.weights, &ops, t.be, &m, NULL), 0);
        n_seen = 0;
        memset(seen, 0, sizeof seen);
        step(m, (struct sl_recompute){0, 0}, &r);
        pack(&b);
        assert_true(b.n_out < b.n_tokens && b.n_virtual < b.n_tokens && b.n_out != b.n_virtual);
        for (int l = 0; l < LAYERS; l++) {
            const struct sl_layer *layer = &m->layers[l];
            bool last = l == LAYERS - 1;
            int64_t rows = last ? b.n_out : b.n_tokens;
            if (last) {
                expect_rows(layer->q, b.n_out, b.n_out);
                expect_rows(layer->kv, b.n_tokens, b.n_tokens);
            } else
                expect_rows(layer->qkv, b.n_tokens, l ? b.n_tokens : b.n_virtual);
            expect_rows(layer->o, rows, rows);
            expect_rows(layer->up, rows, rows);
            expect_rows(layer->down, rows, rows);
        }
        expect_rows(m->head, b.n_out, b.n_out);
        n_seen =
            0; /* computed again: all of layers 0 to 2 but the way back to the residual stream */
        memset(seen, 0, sizeof seen);
        step(m, (struct sl_recompute){.whole = 4}, &r);
        for (int l = 0; l < LAYERS - 1; l++) {
            int64_t rows = (l < 3 ? 2 : 1) * (int64_t)b.n_tokens;
            expect_rows(m->layers[l].qkv, rows, l ? b.n_tokens : b.n_virtual);
            expect_rows(m->layers[l].up, rows, b.n_tokens);
            expect_rows(m->layers[l].down, b.n_tokens, b.n_tokens);
        }
        n_seen = 0; /* the MLP's first product alone */
        memset(seen, 0, sizeof seen);
        step(m, (struct sl_recompute){.mlps = 4}, &r);
        for (int l = 0; l < LAYERS - 1; l++) {
            expect_rows(m->layers[l].qkv, b.n_tokens, l ? b.n_tokens : b.n_virtual);
            expect_rows(m->layers[l].up, (l < 3 ? 2 : 1) * (int64_t)b.n_tokens, b.n_tokens);
            expect_rows(m->layers[l].down, b.n_tokens, b.n_tokens);
        }
        sl_batch_release(&b);
        sl_model_free(m);
        tiny_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_computed_again_give_the_same_bits),
        cmocka_unit_test(test_what_is_kept),
        cmocka_unit_test(test_rows_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

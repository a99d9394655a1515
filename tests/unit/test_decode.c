/* Decoding with a key/value cache must say what a whole pass over the longer row says. */
#include "base/rng.h"
#include "engine/decode.h"
#include "engine/model_parts.h"
#include "tests/unit/tiny_model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB 40
#define N_ROWS 7
#define MAX_NEW 6
#define MAX_N 32

static const struct tiny llama = {.layers = 3,
                                  .hidden = 32,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .ffn = 48,
                                  .vocab = VOCAB,
                                  .positions = MAX_N,
                                  .seed = 21};
static const struct tiny llama_one_layer = {.layers = 1,
                                            .hidden = 32,
                                            .heads = 4,
                                            .kv_heads = 4,
                                            .ffn = 48,
                                            .vocab = VOCAB,
                                            .positions = MAX_N,
                                            .untied = true,
                                            .seed = 22};
static const struct tiny gpt2 = {.gpt2 = true,
                                 .layers = 2,
                                 .hidden = 32,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .ffn = 64,
                                 .vocab = VOCAB,
                                 .positions = MAX_N,
                                 .seed = 23};

/* Rows of three tasks (V = 4, 0, 2) that share beginnings within the first; lengths 2 to 16. */
struct data {
    struct sl_row row[N_ROWS];
    int32_t id[N_ROWS][MAX_N];
    float prompts[6 * 32];
};
static const int slot_v[] = {4, 0, 2};

static void make_data(struct data *d)
{
    struct sl_rng rng = sl_rng_new(7, 0);
    memset(d, 0, sizeof *d);
    for (int r = 0; r < N_ROWS; r++) {
        struct sl_row *row = &d->row[r];
        *row = (struct sl_row){r < 4 ? 0 : r % 2 ? 1 : 2, 0, d->id[r], NULL};
        if (r < 4) {
            d->id[r][row->n++] = 0;
            for (int v = 0; v < 4; v++)
                d->id[r][row->n++] = -1 - v;
            d->id[r][row->n++] = 11;
        }
        for (int k = 1 + (int)sl_rng_below(&rng, 9); k >= 0; k--)
            d->id[r][row->n++] = (int32_t)sl_rng_below(&rng, VOCAB);
        if (row->slot == 2)
            d->id[r][1] = -2;
    }
    for (int i = 0; i < 6 * 32; i++)
        d->prompts[i] = (float)(0.5 * sl_rng_normal(&rng));
}

/* Logits after the row's last token by a pass of its own. */
static void whole(struct sl_model *m, const struct data *d, struct sl_row row, float *logits)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_batch b;
    row.target = NULL;
    if (sl_batch_pack(&row, 1, slot_v, 3, VOCAB, MAX_N, true, 0, &b, &err) ||
        sl_model_logits(m, &b, d->prompts, logits, &err))
        fail_msg("%s", err.msg);
    sl_batch_release(&b);
}

static void assert_close(const float *a, const float *b)
{
    double norm = 0, off = 0;
    for (int i = 0; i < VOCAB; i++) {
        norm += (double)b[i] * b[i];
        off += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    }
    if (!(off <= 1e-5 * 1e-5 * norm))
        fail_msg("off by %g of %g", sqrt(off), sqrt(norm));
}

static void check_steps(const struct tiny *config, int logit_rows)
{
    static struct data d;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    struct sl_decode *dec = NULL;
    float logits[N_ROWS * VOCAB], expected[VOCAB];
    tiny_open(config, &t);
    make_data(&d);
    if (logit_rows)
        t.model->logit_rows = logit_rows;
    if (sl_decode_new(t.model, d.row, N_ROWS, slot_v, 3, d.prompts, MAX_NEW, logits, &dec, &err))
        fail_msg("%s", err.msg);
    for (int r = 0; r < N_ROWS; r++) {
        whole(t.model, &d, d.row[r], expected);
        assert_close(logits + r * VOCAB, expected);
    }
    struct sl_rng rng = sl_rng_new(8, 0);
    for (int s = 0; s < MAX_NEW; s++) { /* each time other rows in another order; row 0 always */
        int row[N_ROWS], n = 0;
        int32_t token[N_ROWS];
        for (int k = 0; k < N_ROWS; k++) {
            int r = (k * 3 + s) % N_ROWS;
            if (r != 0 && sl_rng_below(&rng, 3) == 0)
                continue;
            row[n] = r;
            token[n++] = d.id[r][d.row[r].n++] = (int32_t)sl_rng_below(&rng, VOCAB);
        }
        if (sl_decode_step(dec, row, token, n, logits, &err))
            fail_msg("%s", err.msg);
        for (int i = 0; i < n; i++) {
            whole(t.model, &d, d.row[row[i]], expected);
            assert_close(logits + i * VOCAB, expected);
        }
    }
    const int row0 = 0;
    const int32_t token = 1;
    assert_int_equal(sl_decode_step(dec, &row0, &token, 1, logits, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "row 0 has all the new tokens"));
    sl_decode_free(dec);
    tiny_close(&t);
}

static void test_steps_equal_whole_passes(void **state)
{
    (void)state;
    check_steps(&llama, 0);
    check_steps(&llama, 2);
    check_steps(&gpt2, 0);
    check_steps(&llama_one_layer, 0);
}

/* Greedy continuation of a row alone and among others. */
static void test_rows_do_not_touch_each_other(void **state)
{
    (void)state;
    static struct data d;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    float logits[N_ROWS * VOCAB], alone[VOCAB];
    int all[N_ROWS];
    int32_t token[N_ROWS];
    tiny_open(&llama, &t);
    make_data(&d);
    struct sl_decode *dec, *one;
    assert_int_equal(
        sl_decode_new(t.model, d.row, N_ROWS, slot_v, 3, d.prompts, 2, logits, &dec, &err), 0);
    for (int r = 0; r < N_ROWS; r++) {
        all[r] = r;
        token[r] = r;
    }
    assert_int_equal(sl_decode_step(dec, all, token, N_ROWS, logits, &err), 0);
    for (int r = 0; r < N_ROWS; r++) { /* several caches may live beside each other */
        const int zero = 0;
        assert_int_equal(
            sl_decode_new(t.model, &d.row[r], 1, slot_v, 3, d.prompts, 1, alone, &one, &err), 0);
        assert_int_equal(sl_decode_step(one, &zero, &token[r], 1, alone, &err), 0);
        assert_close(logits + r * VOCAB, alone);
        sl_decode_free(one);
    }
    float again[N_ROWS * VOCAB];
    struct sl_decode *second;
    assert_int_equal(
        sl_decode_new(t.model, d.row, N_ROWS, slot_v, 3, d.prompts, 2, again, &second, &err), 0);
    assert_int_equal(sl_decode_step(second, all, token, N_ROWS, again, &err), 0);
    assert_memory_equal(again, logits, sizeof logits);
    sl_decode_free(second);
    sl_decode_free(dec);
    sl_decode_free(NULL);
    tiny_close(&t);
}

static void test_refusals(void **state)
{
    (void)state;
    static struct data d;
    struct tiny_model t;
    struct sl_err err = SL_ERR_INIT;
    float logits[N_ROWS * VOCAB];
    struct sl_decode *dec = NULL;
    tiny_open(&llama, &t);
    make_data(&d);
    assert_int_equal(sl_decode_new(t.model, d.row, 0, slot_v, 3, d.prompts, 1, logits, &dec, &err),
                     SL_SPEC);
    sl_err_clear(&err);
    assert_int_equal(
        sl_decode_new(t.model, d.row, 1, slot_v, 3, d.prompts, MAX_N, logits, &dec, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "row 0"));
    assert_null(dec);
    sl_err_clear(&err);
    assert_int_equal(sl_decode_new(t.model, d.row, 2, slot_v, 3, d.prompts, 1, logits, &dec, &err),
                     0);
    const int twice[] = {1, 1}, beyond[] = {2}, both[] = {0, 1};
    const int32_t token[] = {1, 1}, high[] = {1, VOCAB};
    assert_int_equal(sl_decode_step(dec, twice, token, 2, logits, &err), SL_SPEC);
    assert_int_equal(sl_decode_step(dec, beyond, token, 1, logits, NULL), SL_SPEC);
    assert_int_equal(sl_decode_step(dec, both, high, 2, logits, NULL), SL_SPEC);
    assert_int_equal(sl_decode_step(dec, both, token, 2, logits, NULL),
                     0); /* refusals took no room */
    sl_decode_free(dec);
    tiny_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_equal_whole_passes),
        cmocka_unit_test(test_rows_do_not_touch_each_other),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

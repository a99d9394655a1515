/* Captured passes on the GPU: a pass that is run, captured or replayed gives the same bits as one that is only ever run,
 * whatever passes came between. Without a GPU nothing of it runs, and it says so. The library is looked for in SL_BIN. */
#include "engine/cpu/coretype.h"
#include "engine/model_parts.h"
#include "tests/unit/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include "tests/ops/gpu_fixture.h"

#define ROWS 6
#define VIRTUAL 5
#define LONGEST 40
#define HIDDEN 128
#define BATCHES 24
#define KINDS 3 /* of batches, by the lengths of their rows */


static const struct tiny models[] = {
    {.gpt2 = true, .layers = 3, .hidden = HIDDEN, .heads = 2, .kv_heads = 2, .ffn = 512, .vocab = 600, .positions = 64, .seed = 1},
    {.layers = 3, .hidden = HIDDEN, .heads = 4, .kv_heads = 2, .ffn = 256, .vocab = 600, .positions = 64, .seed = 2},
};

static int n_replayed;
static const struct sl_ops *watched;

static bool count_replays(struct sl_backend *be, uint64_t bucket)
{
    bool done = watched->step_replay(be, bucket);
    n_replayed += done;
    return done;
}

static bool never(struct sl_backend *be, uint64_t bucket)
{
    (void)be, (void)bucket;
    return false;
}

static void run_only(struct sl_backend *be, uint64_t bucket)
{
    (void)bucket;
    watched->step_begin(be, 0);
}

/* Batch i: its kind says how long its rows are, i itself what they say. */
static void make_batch(int i, const struct sl_arch *a, struct sl_batch *ret)
{
    static int32_t id[ROWS][LONGEST];
    static unsigned char target[ROWS][LONGEST];
    struct sl_row row[ROWS];
    struct sl_err err = SL_ERR_INIT;
    const int v = VIRTUAL;
    memset(target, 0, sizeof target);
    for (int r = 0; r < ROWS; r++) {
        int n = VIRTUAL + 8 + (r * 7 + i % KINDS * 11) % (LONGEST - VIRTUAL - 8);
        for (int k = 0; k < n; k++) {
            id[r][k] = k < VIRTUAL ? -(k + 1) : (int32_t)((uint32_t)(i * 977 + r * 131 + k * k * 29) % 600);
            target[r][k] = k >= n - 3;
        }
        id[r][VIRTUAL] = r; /* no more is shared than the prompt */
        row[r] = (struct sl_row){0, n, id[r], target[r]};
    }
    assert_int_equal(sl_batch_pack(row, ROWS, &v, 1, a->vocab, a->max_positions, true, NULL, ret, &err), 0);
}

struct result {
    float loss[ROWS * 3], gradient[VIRTUAL * HIDDEN];
};

static void run_all(const struct tiny *config, const struct sl_ops *ops, struct result *ret)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend *be = NULL;
    struct sl_weights *w = NULL;
    struct sl_model *m = NULL;
    char path[256];
    void *prompts = NULL, *dprompts = NULL;
    float table[VIRTUAL * HIDDEN];
    for (int i = 0; i < VIRTUAL * HIDDEN; i++)
        table[i] = (float)(i % 37 - 18) / 40;
    tiny_write(config, path);
    assert_int_equal(sl_weights_open(path, &w, &err), 0);
    assert_int_equal(ops->open(&(struct sl_backend_opts){0}, &be, &err), 0);
    assert_int_equal(sl_model_new(w, ops, be, &m, &err), 0);
    assert_int_equal(ops->alloc(be, sizeof table, &prompts, &err), 0);
    assert_int_equal(ops->alloc(be, sizeof table, &dprompts, &err), 0);
    assert_int_equal(ops->upload(be, prompts, table, sizeof table, &err), 0);
    for (int i = 0; i < BATCHES; i++) {
        struct sl_batch b;
        make_batch(i, sl_model_arch(m), &b);
        assert_in_range(b.n_entries, 1, ROWS * 3);
        bool forward_only = i % 5 == 4;
        memset(&ret[i], 0, sizeof ret[i]);
        assert_int_equal(sl_model_step(m, &b, prompts, forward_only ? NULL : dprompts, ret[i].loss, &err), 0);
        assert_int_equal(ops->download(be, ret[i].gradient, dprompts, sizeof ret[i].gradient, &err), 0);
        sl_batch_release(&b);
    }
    ops->free(be, prompts);
    ops->free(be, dprompts);
    sl_model_free(m);
    ops->close(be);
    sl_weights_close(w);
    unlink(path);
}

static void test_same_bits(void **state)
{
    static struct result run[BATCHES], captured[BATCHES];
    (void)state;
    for (size_t t = 0; t < 2; t++)
        for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
            struct sl_ops only_run = *tables[t], watch = *tables[t];
            watched = tables[t];
            only_run.step_replay = never;
            only_run.step_begin = run_only;
            watch.step_replay = count_replays;
            n_replayed = 0;
            run_all(&models[k], &only_run, run);
            run_all(&models[k], &watch, captured);
            print_message("    %s, model %zu: %d of %d passes replayed\n", tables[t]->name, k, n_replayed, BATCHES);
            assert_true(n_replayed >= BATCHES / 4);
            for (int i = 0; i < BATCHES; i++) {
                assert_memory_equal(captured[i].loss, run[i].loss, sizeof run[i].loss);
                assert_memory_equal(captured[i].gradient, run[i].gradient, sizeof run[i].gradient);
                assert_true(run[i].loss[0] > 0 && (i == 0 || run[i].loss[0] != run[i - 1].loss[0]));
            }
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};
    (void)argc;
    if (sl_cpu_reexec(argv))
        return 1;
    int rc = find_gpu(sizeof tests / sizeof *tests);
    if (rc)
        return rc;
    return cmocka_run_group_tests_name("captured passes", tests, NULL, NULL);
}

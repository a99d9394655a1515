/* A run's plan: what it says is what is taken, to the byte, once and for all; a run that does not
 * fit computes layers again, to the same bits, or says at once what would fit. On the GPU with
 * SL_TEST_DEVICE=cuda. */
#include "engine/cpu/coretype.h"
#include "engine/plan.h"
#include "tests/unit/train_run.h"

static struct sl_err err;

static const char *device(void)
{
    const char *name = getenv("SL_TEST_DEVICE");
    return name ? name : "cpu";
}

/* A run from start to end in this process. */
struct whole {
    char dir[SL_PATH_MAX];
    struct sl_run run;
    struct sl_trainer t;
    struct sl_emitter report;
    int rc;
};

static void begin(struct whole *w, const char *const *overrides, struct sl_trainer_options options)
{
    int events = open("/dev/null", O_WRONLY);

    memset(w, 0, sizeof *w);
    sl_err_clear(&err);
    options.threads = 1;
    if (!options.device)
        options.device = device();
    train_dir(w->dir, overrides);
    sl_emit_init(&w->report, events);
    if (sl_run_open(w->dir, &w->run, &err))
        fail_msg("%s", err.msg);
    w->rc = sl_trainer_init(&w->t, &w->run, &options, &w->report, NULL, &err);
}

static void end(struct whole *w)
{
    sl_trainer_release(&w->t);
    sl_run_release(&w->run);
    sl_rmtree(w->dir, NULL);
    close(w->report.events_fd);
}

static struct sl_backend_info info_of(const struct whole *w)
{
    struct sl_backend_info info;
    w->t.ops->info(w->t.be, &info);
    return info;
}

/* The prompts after the last step; the caller frees. */
static float *finish(struct whole *w)
{
    enum sl_wire_want want;
    size_t bytes = (size_t)w->t.n_prompts * (size_t)w->t.hidden * sizeof(float);
    float *prompts = malloc(bytes);

    if (sl_trainer_run(&w->t, &want, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(w->t.ops->download(w->t.be, prompts, w->t.prompts, bytes, NULL), 0);
    return prompts;
}

static const char *const configs[][6] = {
    {NULL},
    {"model.p_tuning.encoder_type=lstm", "model.p_tuning.dropout=0.3", NULL},
    {"model.p_tuning.encoder_type=mlp", "model.p_tuning.num_layers=3", "model.data.shuffle=false",
     NULL},
    {"model.virtual_prompt_style=prompt-tuning",
     "model.prompt_tuning={\"new_prompt_init_methods\": [\"text\", \"random\"],"
     " \"new_prompt_init_text\": [\"is it so\", null]}",
     NULL},
    {"trainer.precision=bf16", "model.micro_batch_size=3", NULL},
    {"trials=[{\"name\":\"a\",\"overrides\":{}},{\"name\":\"b\",\"overrides\":{\"model.seed\":7,"
     "\"model.p_tuning.encoder_hidden\":8}},{\"name\":\"c\",\"overrides\":{\"model.p_tuning."
     "encoder_type\":\"lstm\","
     "\"model.task_templates.0.total_virtual_tokens\":9,\"model.task_templates.1.total_virtual_"
     "tokens\":9,"
     "\"model.task_templates.1.virtual_token_splits\":[4,5]}}]",
     NULL},
    {"trainer.precision=int8", "model.p_tuning.encoder_type=embedding", NULL},
    {"trainer.precision=fp8", NULL}, /* the last one: on GPUs only */
};

static void test_what_is_planned_is_what_is_taken(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof configs / sizeof *configs - !strcmp(device(), "cpu"); i++) {
        struct whole w;
        struct sl_plan plan;
        struct sl_backend_info before, after;
        struct sl_trainer look;
        struct sl_trainer_options options = {.threads = 1};

        begin(&w, configs[i], (struct sl_trainer_options){0});
        if (w.rc)
            fail_msg("%s", err.msg);
        before = info_of(&w);
        assert_int_equal(before.given_bytes, w.t.plan.persistent);
        assert_int_equal(before.reserved_bytes, w.t.plan.persistent);
        assert_true(before.accelerator || before.allocations == 2); /* the two blocks */
        free(finish(&w));
        after = info_of(&w);
        assert_int_equal(after.given_bytes, before.given_bytes);
        if (!after
                 .accelerator) /* a GPU's operations have scratch that grows with the first steps */
            assert_int_equal(after.allocations, before.allocations);
        assert_true(sl_model_arena_bytes(w.t.model) <= w.t.plan.arena);

        /* the same plan without device and weights */
        assert_int_equal(sl_trainer_look(&look, &w.run, &options, &w.report, &err), 0);
        assert_int_equal(sl_trainer_plan_for(&look, &w.t.plan.device, &plan, &err), 0);
        assert_memory_equal(&plan, &w.t.plan, sizeof plan);
        assert_null(look.be);
        sl_trainer_release(&look);
        end(&w);
    }
}

/* Packs every micro-batch of every step as training does: none exceeds the plan, and some reaches
 * it. */
static void test_the_largest_micro_batch(void **state)
{
    static const char *const sizes[][4] = {
        {NULL},
        {"model.micro_batch_size=8", "model.global_batch_size=8", NULL},
        {"model.micro_batch_size=1", NULL},
        {"model.data.shuffle=false", NULL}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct whole w;
        int most = 0, outs = 0, seqs = 0, order[TRAIN_ROWS];
        begin(&w, sizes[i], (struct sl_trainer_options){.device = "cpu"});
        if (w.rc)
            fail_msg("%s", err.msg);
        struct sl_trial *trial = &w.t.trial[0];
        int micro = trial->config->micro_batch, per = w.t.rows_per_step;
        for (int64_t step = 0; step < w.t.steps; step++) {
            sl_dataset_order(trial->data->train, trial->config->seed,
                             (int)(step / trial->steps_per_epoch), trial->config->data.shuffle,
                             order);
            for (int at = 0; at < per; at += micro) {
                struct sl_row rows[TRAIN_ROWS];
                struct sl_batch b;
                int n = per - at < micro ? per - at : micro;
                for (int k = 0; k < n; k++)
                    rows[k] = sl_dataset_row(trial->data->train,
                                             order[step % trial->steps_per_epoch * per + at + k]);
                assert_int_equal(sl_batch_pack(rows, n, w.t.slot_v, w.t.n_slots,
                                               sl_model_arch(w.t.model)->vocab, 64, true, NULL, &b,
                                               &err),
                                 0);
                assert_true(
                    b.n_tokens <= w.t.plan.most.n_tokens && b.n_out <= w.t.plan.most.n_out &&
                    b.n_virtual <= w.t.plan.most.n_virtual && b.n_seqs <= w.t.plan.most.n_seqs &&
                    b.n_entries <= w.t.plan.most.n_entries && b.n_rows <= w.t.plan.most.n_rows &&
                    b.memory_bytes <= w.t.plan.most.memory_bytes);
                most = b.n_tokens > most ? b.n_tokens : most;
                outs = b.n_out > outs ? b.n_out : outs;
                seqs = b.n_seqs > seqs ? b.n_seqs : seqs;
                sl_batch_release(&b);
            }
        }
        assert_true(most >= w.t.plan.most.n_tokens -
                                4); /* rows of a batch may share a letter or two more than all do */
        assert_true(outs >= w.t.plan.most.n_out - 8 && seqs >= w.t.plan.most.n_seqs - 2);
        end(&w);
    }
}

/* The memory is a byte too small for the plain run: layers are computed again, the result is the
 * same. */
static void test_too_large_for_the_plain_run(void **state)
{
    struct whole plain, small;
    struct sl_plan_device d;
    (void)state;
    begin(&plain, NULL, (struct sl_trainer_options){0});
    if (plain.rc)
        fail_msg("%s", err.msg);
    assert_int_equal(plain.t.plan.recompute, 0);
    int layers = plain.t.plan.layers;
    begin(&small, NULL, (struct sl_trainer_options){.recompute = sl_recompute_most(layers)});
    if (small.rc)
        fail_msg("%s", err.msg);
    assert_true(small.t.plan.recompute == sl_recompute_most(layers) && layers > 2);
    float *a = finish(&plain), *b = finish(&small);
    assert_memory_equal(a, b, (size_t)plain.t.n_prompts * (size_t)plain.t.hidden * sizeof *a);
    free(a);
    free(b);
    d = plain.t.plan.device;
    d.open = false;
    for (int n = sl_recompute_most(layers); n != 1;
         n--) { /* the memory of each choice, to the byte, and one less */
        struct sl_model *m = plain.t.model;
        struct sl_batch none = {0};
        struct sl_plan q = plain.t.plan;
        n = n < 2 ? 0 : n;
        q.device = d;
        sl_plan_set(&q, m, &none, n);
        q.device.memory_bytes = q.total;
        sl_plan_choose(&q, m, &none);
        assert_true(sl_plan_fits(&q));
        assert_int_equal(q.recompute, n);
        q.device.memory_bytes = q.total - 1;
        sl_plan_choose(&q, m, &none);
        assert_true(q.recompute > n || !sl_plan_fits(&q));
        if (n == 0)
            break;
    }
    end(&small);
    end(&plain);
}

static void test_what_would_fit(void **state)
{
    struct whole w;
    (void)state;
    begin(&w, (const char *const[]){"model.micro_batch_size=8", "datasets.validation=[]", NULL},
          (struct sl_trainer_options){0});
    if (w.rc)
        fail_msg("%s", err.msg);
    int64_t all = w.t.plan.total, arena = w.t.plan.step.total;
    end(&w);
    begin(&w, (const char *const[]){"model.micro_batch_size=8", "datasets.validation=[]", NULL},
          (struct sl_trainer_options){.memory_bytes = all - arena * 3 / 4});
    assert_int_equal(w.rc, SL_NOMEM);
    assert_non_null(strstr(err.msg, "out of memory before the first step"));
    assert_non_null(strstr(err.msg, "model.micro_batch_size "));
    assert_non_null(strstr(err.msg, "trainer.precision int8"));
    int fits = atoi(strstr(err.msg, "model.micro_batch_size ") + strlen("model.micro_batch_size "));
    assert_true(fits >= 1 && fits < 8);
    end(&w);
    for (int more = 0; more < 2; more++) { /* what it says fits does, and one row more does not */
        char size[64];
        snprintf(size, sizeof size, "model.micro_batch_size=%d", fits + more);
        begin(&w, (const char *const[]){size, "datasets.validation=[]", NULL},
              (struct sl_trainer_options){.memory_bytes = all - arena * 3 / 4});
        assert_int_equal(w.rc, more ? SL_NOMEM : 0);
        end(&w);
    }
    begin(&w, NULL, (struct sl_trainer_options){.memory_bytes = 1});
    assert_int_equal(w.rc, SL_NOMEM);
    assert_non_null(strstr(err.msg, "no micro-batch fits"));
    end(&w);
}

/* The plan of a GPU pads the largest batch: no smaller one may be larger when it is padded. */
static void test_padding_grows_with_the_batch(void **state)
{
    unsigned seed = 1;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        struct sl_batch a = {.n_slots = 1, .n_prompts = 7}, b = a, pa, pb;
        int *of_a[] = {&a.n_tokens, &a.n_out, &a.n_entries, &a.n_virtual, &a.n_seqs},
            *of_b[] = {&b.n_tokens, &b.n_out, &b.n_entries, &b.n_virtual, &b.n_seqs};
        for (int k = 0; k < 5; k++) {
            seed = seed * 1664525u + 1013904223u;
            *of_b[k] = 1 + (int)(seed >> 8) % (k ? 600 : 5000);
            seed = seed * 1664525u + 1013904223u;
            *of_a[k] = 1 + (int)(seed >> 8) % *of_b[k];
        }
        a.n_out_seqs = a.n_seqs;
        b.n_out_seqs = b.n_seqs;
        sl_batch_pad_counts(&a, &pa);
        sl_batch_pad_counts(&b, &pb);
        assert_true(pa.n_out <= pb.n_out && pa.n_entries <= pb.n_entries &&
                    pa.n_seqs <= pb.n_seqs && pa.n_virtual <= pb.n_virtual);
        sl_batch_pad_bound(&b, &pb);
        assert_true(pa.n_tokens <= pb.n_tokens && pa.memory_bytes <= pb.memory_bytes);
    }
}

static void test_sizes_of_memory(void **state)
{
    int64_t n = 7;
    char text[SL_BYTES_TEXT_MAX];
    (void)state;
    assert_int_equal(sl_bytes_parse("80GiB", &n, NULL), 0);
    assert_int_equal(n, 80ll << 30);
    assert_int_equal(sl_bytes_parse("1.5MiB", &n, NULL), 0);
    assert_int_equal(n, 3 << 19);
    assert_int_equal(sl_bytes_parse("4096", &n, NULL), 0);
    assert_int_equal(n, 4096);
    static const char *const bad[] = {"", "GiB", "80GB", "-1GiB", "0", "nan", "1e30GiB", "80 GiB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(sl_bytes_parse(bad[i], &n, NULL), SL_SPEC);
    assert_int_equal(n, 4096);
    assert_string_equal(sl_bytes_text(3ll << 29, text), "1.50 GiB");
    assert_string_equal(sl_bytes_text(3 << 19, text), "1.5 MiB");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_planned_is_what_is_taken),
        cmocka_unit_test(test_the_largest_micro_batch),
        cmocka_unit_test(test_too_large_for_the_plain_run),
        cmocka_unit_test(test_what_would_fit),
        cmocka_unit_test(test_padding_grows_with_the_batch),
        cmocka_unit_test(test_sizes_of_memory),
    };
    (void)argc;
    if (sl_cpu_reexec(argv))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Checkpoints: a resume continues to the same bits, and no crash leaves less than a complete one.
 */
#include "base/file.h"
#include "base/rng.h"
#include "engine/checkpoint.h"
#include "engine/optim.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define CONFIG "1111111111111111111111111111111111111111111111111111111111111111"
#define MODEL "2222222222222222222222222222222222222222222222222222222222222222"
#define OTHER "3333333333333333333333333333333333333333333333333333333333333333"
#define N_BEST_ROWS 6
#define KILLS 25

static struct sl_backend *be;
static const struct sl_ops *ops = &sl_cpu_ops;
static char dir[] = "/tmp/sl-checkpoint-XXXXXX";

static int set_up(void **state)
{
    struct sl_backend_opts opts = {.threads = 1};

    (void)state;
    return mkdtemp(dir) ? ops->open(&opts, &be, NULL) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    ops->close(be);
    return sl_rmtree(dir, NULL);
}

/* A small training run whose loss is a fixed linear function of the tables: it needs no model. */
struct run {
    struct sl_encoder *e;
    struct sl_optim o;
    float *tables, *dtables;
    float best[N_BEST_ROWS * 8];
    struct sl_checkpoint c;
};

static void run_init(struct run *r, struct sl_encoder_config config)
{
    size_t n = (size_t)(config.n_tasks * config.virtual_tokens * config.hidden) * sizeof(float);
    void *p;

    memset(r, 0, sizeof *r);
    assert_int_equal(sl_encoder_new(&config, ops, be, &r->e, NULL), 0);
    assert_int_equal(sl_optim_init(&r->o, ops, be, NULL), 0);
    r->o.beta1 = 0.9f, r->o.beta2 = 0.98f, r->o.eps = 1e-8f, r->o.weight_decay = 0.01f,
    r->o.clip_norm = 1;
    assert_int_equal(ops->alloc(be, n, &p, NULL), 0);
    r->tables = p;
    assert_int_equal(ops->alloc(be, n, &p, NULL), 0);
    r->dtables = p;
    r->c = (struct sl_checkpoint){
        .config_digest = CONFIG, .ops = ops, .be = be, .best_tables = r->best, .best_rows = N_BEST_ROWS, .hidden = 8};
    r->c.params = sl_encoder_params(r->e, &r->c.n_params);
}

static void run_release(struct run *r)
{
    sl_encoder_free(r->e);
    sl_optim_release(&r->o);
    ops->free(be, r->tables);
    ops->free(be, r->dtables);
}

static void run_steps(struct run *r, int64_t from, int64_t to)
{
    const struct sl_encoder_config *c = sl_encoder_config(r->e);
    int n = c->n_tasks * c->virtual_tokens * c->hidden;
    float host[256], norm;

    for (int64_t s = from; s < to; s++) {
        struct sl_rng rng = sl_rng_new(9, (uint64_t)s);

        for (int i = 0; i < n; i++)
            host[i] = (float)sl_rng_normal(&rng);
        ops->upload(be, r->dtables, host, (size_t)n * sizeof *host, NULL);
        sl_encoder_zero_grad(r->e);
        sl_encoder_forward(r->e, true, s, r->tables);
        sl_encoder_backward(r->e, r->dtables);
        assert_int_equal(
            sl_optim_step(&r->o, r->c.params, r->c.n_params, 0.01f, s + 1, &norm, NULL), 0);
    }
}

/* All parameters and moments, on the host; the caller frees them. */
static float *snapshot(struct run *r, size_t *ret_n)
{
    float *all = NULL;
    size_t n = 0;

    for (int i = 0; i < r->c.n_params; i++) {
        const struct sl_param *p = &r->c.params[i];
        size_t size = (size_t)p->rows * (size_t)p->cols;
        const float *part[3] = {p->value, p->m, p->v};

        for (int k = 0; k < 3; k++) {
            all = realloc(all, (n + size) * sizeof *all);
            assert_non_null(all);
            assert_int_equal(ops->download(be, all + n, part[k], size * sizeof *all, NULL), 0);
            n += size;
        }
    }
    *ret_n = n;
    return all;
}

static struct sl_encoder_config lstm(void)
{
    return (struct sl_encoder_config){.type = SL_ENC_LSTM,
                                      .n_tasks = 2,
                                      .virtual_tokens = 3,
                                      .hidden = 8,
                                      .encoder_hidden = 5,
                                      .layers = 2,
                                      .dropout = 0.3f,
                                      .seed = 4};
}

static struct sl_train_state some_state(void)
{
    struct sl_train_state s = {.step = 123456789012,
                               .epoch = 3,
                               .position = 77,
                               .seed = UINT64_MAX - 5,
                               .failure = "it \"was\" no number",
                               .tokens = 1ll << 40,
                               .seconds = 1e-300,
                               .first_val_loss = 1.0 / 3,
                               .best_val_loss = nextafter(1, 2),
                               .best_step = 100,
                               .stop_best = -0.0,
                               .stop_waited = 4,
                               .n_best = 2,
                               .best = {{100, 1.25}, {90, 1e300}},
                               .config_digest = CONFIG,
                               .model_digest = MODEL};

    sl_fingerprint_take(ops, be, &s.print);
    return s;
}

static int save(struct run *r, struct sl_train_state *s, struct sl_err *err)
{
    r->c.state = s;
    return sl_checkpoint_save(dir, &r->c, 1, err);
}

static int load(struct run *r, struct sl_train_state *s, char *warning, struct sl_err *err)
{
    struct sl_fingerprint now;

    r->c.state = s;
    sl_fingerprint_take(ops, be, &now);
    return sl_checkpoint_load(dir, &r->c, 1, MODEL, &now, warning, err);
}

static void the_state_comes_back_to_the_bit(void **state)
{
    struct sl_train_state s = some_state(), got;
    char warning[SL_CHECKPOINT_WARNING_MAX] = "?";
    struct run r, again;

    (void)state;
    run_init(&r, lstm());
    run_init(&again, lstm());
    for (int i = 0; i < N_BEST_ROWS * 8; i++)
        r.best[i] = (float)i / 7;
    assert_int_equal(save(&r, &s, NULL), 0);
    assert_true(sl_checkpoint_exists(dir));
    memset(&got, 0xff, sizeof got);
    assert_int_equal(load(&again, &got, warning, NULL), 0);
    assert_string_equal(warning, "");
    assert_memory_equal(again.best, r.best, sizeof r.best);
    assert_true(got.step == s.step && got.epoch == 3 && got.position == 77 && got.seed == s.seed);
    assert_true(got.ended == SL_TRIAL_TRAINS && got.tokens == s.tokens);
    assert_string_equal(got.failure, s.failure);
    assert_true(got.seconds == s.seconds && got.first_val_loss == s.first_val_loss);
    assert_true(got.best_val_loss == s.best_val_loss && got.best_step == 100);
    assert_true(got.stop_best == 0 && signbit(got.stop_best) && got.stop_waited == 4);
    assert_true(got.n_best == 2 && got.best[1].step == 90 && got.best[1].val_loss == 1e300);
    assert_string_equal(got.config_digest, CONFIG);
    assert_string_equal(got.model_digest, MODEL);
    assert_memory_equal(&got.print, &s.print, sizeof s.print);
    run_release(&r);
    run_release(&again);
}

static void a_resumed_run_has_the_bits_of_an_undisturbed_one(void **state)
{
    struct sl_train_state s = some_state();
    char warning[SL_CHECKPOINT_WARNING_MAX];
    struct run whole, first, second;
    float *a, *b;
    size_t n, n_b;

    (void)state;
    s.best_step = -1;
    run_init(&whole, lstm());
    run_init(&first, lstm());
    run_steps(&whole, 0, 20);
    run_steps(&first, 0, 7);
    s.step = 7;
    assert_int_equal(save(&first, &s, NULL), 0);
    run_release(&first);

    run_init(&second, lstm());
    run_steps(&second, 0, 2); /* what was there before must not matter */
    assert_int_equal(load(&second, &s, warning, NULL), 0);
    assert_int_equal(s.step, 7);
    run_steps(&second, s.step, 20);
    a = snapshot(&whole, &n);
    b = snapshot(&second, &n_b);
    assert_int_equal(n, n_b);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a);
    free(b);
    run_release(&whole);
    run_release(&second);
}

/* Expects load to fail with code and a message that says what, changing nothing. */
static void refused(struct run *r, int code, const char *says)
{
    struct sl_train_state got = {.step = -1};
    char warning[SL_CHECKPOINT_WARNING_MAX] = "untouched";
    struct sl_err err = SL_ERR_INIT;
    size_t n;
    float *a = snapshot(r, &n), *b;

    if (load(r, &got, warning, &err) != code || !strstr(err.msg, says))
        fail_msg("code %d, message %s: not %d with %s", err.code, err.msg, code, says);
    b = snapshot(r, &n);
    assert_memory_equal(a, b, n * sizeof *a);
    assert_int_equal(got.step, -1);
    assert_string_equal(warning, "untouched");
    free(a);
    free(b);
}

static void what_does_not_fit_is_named(void **state)
{
    struct sl_train_state s = some_state();
    struct sl_encoder_config config = lstm();
    char path[SL_PATH_MAX];
    struct run r, wider, other;
    struct sl_buf file;

    (void)state;
    run_init(&r, lstm());
    assert_int_equal(sl_path(path, NULL, "%s/" SL_CHECKPOINT_FILE, dir), 0);
    unlink(path);
    assert_false(sl_checkpoint_exists(dir));
    refused(&r, SL_NOTFOUND, path);

    assert_int_equal(save(&r, &s, NULL), 0);
    config.virtual_tokens = 4;
    run_init(&wider, config);
    refused(&wider, SL_DATA,
            "tensor value/embedding.weight has 3 x 8 numbers, this run needs 4 x 8");
    run_release(&wider);
    config = lstm();
    config.type = SL_ENC_MLP;
    config.layers = 3;
    config.encoder_hidden = 10;
    run_init(&other, config);
    refused(&other, SL_DATA, "value/mlp_head.0.weight has 10 x 10 numbers, this run needs 10 x 8");
    run_release(&other);
    config.type = SL_ENC_TABLE;
    run_init(&other, config);
    refused(&other, SL_DATA, "value/table.0 is not in it: another encoder");
    run_release(&other);
    config.type = SL_ENC_EMBEDDING; /* a part of what is saved */
    run_init(&other, config);
    refused(&other, SL_DATA, "tensors, this run needs 4");
    run_release(&other);

    strcpy(s.config_digest, OTHER);
    assert_int_equal(save(&r, &s, NULL), 0);
    refused(&r, SL_CONFLICT, "another configuration");
    strcpy(s.config_digest, CONFIG);
    strcpy(s.model_digest, OTHER);
    assert_int_equal(save(&r, &s, NULL), 0);
    refused(&r, SL_CONFLICT, "another model");
    strcpy(s.model_digest, MODEL);
    assert_int_equal(save(&r, &s, NULL), 0);

    sl_buf_init(&file, 1 << 20);
    assert_int_equal(sl_file_read(path, &file, NULL), 0);
    file.p[file.len / 2] ^= 1;
    assert_int_equal(sl_file_write(path, file.p, file.len, NULL), 0);
    refused(&r, SL_DATA, "damaged");
    file.p[file.len / 2] ^= 1;
    assert_int_equal(sl_file_write(path, file.p, file.len - 4, NULL), 0);
    refused(&r, SL_DATA, "truncated");
    assert_int_equal(sl_file_write(path, "{}", 2, NULL), 0);
    refused(&r, SL_DATA, path);
    sl_buf_release(&file);
    run_release(&r);
}

static void another_machine_is_warned_about(void **state)
{
    struct sl_train_state s = some_state(), got;
    char warning[SL_CHECKPOINT_WARNING_MAX];
    struct run r;

    (void)state;
    run_init(&r, lstm());
    s.print.threads = 7;
    strcpy(s.print.kernel, "openblas Prescott");
    assert_int_equal(save(&r, &s, NULL), 0);
    assert_int_equal(load(&r, &got, warning, NULL), 0);
    assert_non_null(strstr(warning, "bits will differ"));
    assert_non_null(strstr(warning, "kernel was openblas Prescott, is "));
    assert_non_null(strstr(warning, "threads was 7, is 1"));
    assert_null(strstr(warning, "backend"));
    run_release(&r);
}

static void a_failed_save_keeps_the_old_one(void **state)
{
    struct sl_train_state s = some_state(), got;
    char warning[SL_CHECKPOINT_WARNING_MAX], tmp[SL_PATH_MAX];
    struct sl_err err = SL_ERR_INIT;
    struct run r;

    (void)state;
    run_init(&r, lstm());
    s.step = 1;
    assert_int_equal(save(&r, &s, NULL), 0);
    s.step = 2;
    s.seconds = NAN;
    assert_int_equal(save(&r, &s, &err), SL_DATA);
    assert_non_null(strstr(err.msg, "seconds is not finite"));
    s.seconds = 0;
    sl_err_clear(&err);
    assert_int_equal(sl_path(tmp, NULL, "%s/checkpoint.tmp.tmp", dir), 0);
    assert_int_equal(symlink("/dev/full", tmp), 0); /* stands in for a disk without room */
    assert_int_equal(save(&r, &s, &err), SL_IO);
    assert_non_null(strstr(err.msg, "saving a checkpoint at step 2"));
    assert_non_null(strstr(err.msg, "No space left"));
    assert_int_equal(load(&r, &got, warning, NULL), 0);
    assert_int_equal(got.step, 1);
    assert_int_equal(save(&r, &s, NULL), 0); /* the next one works again */
    assert_int_equal(load(&r, &got, warning, NULL), 0);
    assert_int_equal(got.step, 2);
    run_release(&r);
}

static void a_reader_keeps_the_checkpoint_that_it_opened(void **state)
{
    struct sl_train_state s = some_state();
    char path[SL_PATH_MAX];
    struct sl_map map;
    struct stat info;
    struct sl_buf before;
    struct run r;

    (void)state;
    run_init(&r, lstm());
    assert_int_equal(sl_path(path, NULL, "%s/" SL_CHECKPOINT_FILE, dir), 0);
    assert_int_equal(save(&r, &s, NULL), 0);
    sl_buf_init(&before, 1 << 20);
    assert_int_equal(sl_file_read(path, &before, NULL), 0);
    assert_int_equal(sl_map_open(path, &map, NULL), 0);
    run_steps(&r, 0, 3);
    s.step = 7; /* a shorter text, an equally long file */
    assert_int_equal(save(&r, &s, NULL), 0);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, before.len);
    assert_int_equal(map.len, before.len);
    assert_memory_equal(map.data, before.p, before.len);
    sl_map_close(&map);
    sl_buf_release(&before);
    run_release(&r);
}

/* A child saves checkpoint after checkpoint and is killed at some moment: what is found is
 * complete, and not older than the last one the child had reported. */
static void a_kill_at_any_moment_leaves_a_complete_one(void **state)
{
    struct sl_rng rng = sl_rng_new(1, SL_RNG_DATA);
    struct sl_train_state s = some_state(), got;
    char warning[SL_CHECKPOINT_WARNING_MAX];
    int64_t told = 0, advanced = 0;
    struct run r;

    (void)state;
    run_init(&r, lstm());
    s.step = 0;
    assert_int_equal(save(&r, &s, NULL), 0);
    for (int k = 0; k < KILLS; k++) {
        int64_t step = told, start = told;
        int pipe_fd[2], status;
        pid_t pid;

        assert_int_equal(pipe(pipe_fd), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            for (s.step = start + 1;; s.step++)
                if (save(&r, &s, NULL) ||
                    write(pipe_fd[1], &s.step, sizeof s.step) != sizeof s.step)
                    _exit(1);
        }
        close(pipe_fd[1]);
        assert_int_equal(read(pipe_fd[0], &told, sizeof told), sizeof told);
        usleep((useconds_t)sl_rng_below(&rng, 20000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        while (read(pipe_fd[0], &step, sizeof step) == sizeof step)
            told = step;
        close(pipe_fd[0]);
        assert_int_equal(load(&r, &got, warning, NULL), 0);
        assert_true(got.step == told || got.step == told + 1);
        advanced += got.step - start;
        told = got.step;
    }
    assert_true(advanced >= KILLS);
    run_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_state_comes_back_to_the_bit),
        cmocka_unit_test(a_resumed_run_has_the_bits_of_an_undisturbed_one),
        cmocka_unit_test(what_does_not_fit_is_named),
        cmocka_unit_test(another_machine_is_warned_about),
        cmocka_unit_test(a_failed_save_keeps_the_old_one),
        cmocka_unit_test(a_reader_keeps_the_checkpoint_that_it_opened),
        cmocka_unit_test(a_kill_at_any_moment_leaves_a_complete_one),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}

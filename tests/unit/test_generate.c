/* Generation on the recorded tiny model: a row's result does not depend on what is decoded beside
 * it, random numbers follow (seed, row), texts end where they should, and the cache stays within
 * its bound. */
#include "tests/unit/generate_fixture.h"

#define LOGIT_TOLERANCE 1e-4

static char **texts_of(const struct sl_config *c, const struct sl_dataset *ds, int64_t cache_bytes)
{
    const struct sl_generator g = {.model = model,
                                   .tok = tok,
                                   .config = c,
                                   .tuned = true,
                                   .prompts = prompts,
                                   .cache_bytes = cache_bytes};
    char **texts = NULL;

    ok(sl_generate(&g, ds, &texts, &err));
    return texts;
}

static int differing(char **a, char **b, int n, int stride)
{
    int different = 0;

    for (int i = 0; i < n; i += stride)
        different += strcmp(a[i], b[i]) != 0;
    return different;
}

static const char greedy[] = "{\"tokens_to_generate\": 12}";
static const char sampled[] =
    "{\"tokens_to_generate\": 12, \"greedy\": false, \"temperature\": 1.3, \"top_k\": 40, "
    "\"top_p\": 0.9, \"repetition_penalty\": 1.1}";
static const char other_seed[] =
    "{\"tokens_to_generate\": 12, \"greedy\": false, \"temperature\": 1.3, \"top_k\": 40, "
    "\"top_p\": 0.9, \"repetition_penalty\": 1.1, \"stop\": [\"OTHER_SEED\"]}";

/* ---- independence ---- */

static void test_rows_decoded_together_answer_as_alone(void **state)
{
    const char *const settings[] = {greedy, sampled};

    (void)state;
    for (int s = 0; s < 2; s++) {
        struct sl_config c;
        struct sl_dataset *ds, *beside;
        char **together, **alone, **few, **among_others;

        make_config(settings[s], &c);
        ds = rows(&c, N_ROWS, 0, false);
        together = texts_of(&c, ds, 0);
        alone = texts_of(&c, ds, 1);
        few = texts_of(&c, ds, 100000);
        beside = rows(&c, N_ROWS, 5, false);
        among_others = texts_of(&c, beside, 0);
        assert_int_equal(differing(together, alone, N_ROWS, 1), 0);
        assert_int_equal(differing(together, few, N_ROWS, 1), 0);
        assert_int_equal(differing(together, among_others, N_ROWS, 2), 0);
        assert_true(differing(together, among_others, N_ROWS, 1) >
                    N_ROWS / 4); /* the others did change */
        sl_texts_free(together, N_ROWS);
        sl_texts_free(alone, N_ROWS);
        sl_texts_free(few, N_ROWS);
        sl_texts_free(among_others, N_ROWS);
        sl_dataset_free(ds);
        sl_dataset_free(beside);
        sl_config_release(&c);
    }
}

static void test_logits_do_not_depend_on_the_batch(void **state)
{
    int vocab = sl_model_arch(model)->vocab, slot_v[] = {5, 3};
    float *all = malloc((size_t)N_ROWS * (size_t)vocab * sizeof *all),
          *one = malloc((size_t)vocab * sizeof *one);
    struct sl_decode *batch = NULL, *alone = NULL;
    struct sl_config c;
    struct sl_dataset *ds;
    struct sl_row row[N_ROWS];
    int name[N_ROWS];
    int32_t token[N_ROWS];
    double worst = 0;

    (void)state;
    make_config(greedy, &c);
    ds = rows(&c, N_ROWS, 0, false);
    for (int i = 0; i < N_ROWS; i++) {
        row[i] = sl_dataset_row(ds, i);
        row[i].target = NULL;
        name[i] = i;
        token[i] = (i * 37 + 11) % vocab;
    }
    ok(sl_decode_new(model, row, N_ROWS, slot_v, 2, prompts, 4, all, &batch, &err));
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < N_ROWS; i++) {
            int zero = 0;

            ok(sl_decode_new(model, &row[i], 1, slot_v, 2, prompts, 4, one, &alone, &err));
            for (int s = 0; s < step; s++)
                ok(sl_decode_step(alone, &zero, &token[i], 1, one, &err));
            for (int k = 0; k < vocab; k++)
                worst = fmax(worst, fabs((double)one[k] -
                                         (double)all[(size_t)i * (size_t)vocab + (size_t)k]));
            sl_decode_free(alone);
        }
        ok(sl_decode_step(batch, name, token, N_ROWS, all, &err));
    }
    print_message("logits of a row alone and among %d: at most %.1e apart\n", N_ROWS, worst);
    assert_true(worst <= LOGIT_TOLERANCE);
    sl_decode_free(batch);
    sl_dataset_free(ds);
    sl_config_release(&c);
    free(all);
    free(one);
}

static void test_random_numbers_follow_seed_and_row(void **state)
{
    struct sl_config c, other;
    struct sl_dataset *ds, *same;
    char **a, **b, **d, path[SL_PATH_MAX];
    const char *paths[1] = {path};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE, .max_positions = 64};
    int distinct = 0;
    FILE *f;

    (void)state;
    make_config(sampled, &c);
    make_config(other_seed, &other);
    ds = rows(&c, N_ROWS, 0, false);
    a = texts_of(&c, ds, 0);
    b = texts_of(&c, ds, 0);
    assert_int_equal(differing(a, b, N_ROWS, 1), 0);
    sl_texts_free(b, N_ROWS);
    b = texts_of(&other, ds, 0);
    assert_true(differing(a, b, N_ROWS, 1) > N_ROWS * 3 / 4);
    sl_texts_free(a, N_ROWS);
    sl_texts_free(b, N_ROWS);
    sl_dataset_free(ds);

    snprintf(path, sizeof path, "%s/same.jsonl", folder); /* equal rows draw different numbers */
    f = fopen(path, "w");
    for (int i = 0; i < N_ROWS; i++)
        fprintf(f, "{\"taskname\": \"one\", \"context\": \"abc\"}\n");
    fclose(f);
    ok(sl_dataset_open(paths, 1, &c, tok, &how, &same, &err));
    d = texts_of(&c, same, 0);
    for (int i = 1; i < N_ROWS; i++)
        distinct += strcmp(d[i], d[0]) != 0;
    assert_true(distinct > N_ROWS * 3 / 4);
    sl_texts_free(d, N_ROWS);
    sl_dataset_free(same);
    sl_config_release(&c);
    sl_config_release(&other);
}

/* ---- where texts end ---- */

static void strip(char *text)
{
    char *start = text + strspn(text, " \t\n\v\f\r"), *end = text + strlen(text);

    while (end > start && strchr(" \t\n\v\f\r", end[-1]))
        end--;
    memmove(text, start, (size_t)(end - start));
    text[end - start] = '\0';
}

static void test_stop_strings_cut_the_text(void **state)
{
    struct sl_config plain, stops;
    struct sl_dataset *ds;
    char **all, **cut, pair[3] = "", settings[128];
    int with_pair = 0;

    (void)state;
    make_config("{\"tokens_to_generate\": 20, \"min_tokens\": 20}", &plain);
    ds = rows(&plain, N_ROWS, 0, false);
    all = texts_of(&plain, ds, 0);
    for (int i = 0; i < N_ROWS && !pair[0]; i++) /* two characters in the middle of some text */
        for (size_t k = 2; k + 4 < strlen(all[i]) && !pair[0]; k++)
            if (all[i][k] > ' ' && all[i][k] < 127 && all[i][k + 1] > ' ' && all[i][k + 1] < 127 &&
                !strchr("\"\\", all[i][k]) && !strchr("\"\\", all[i][k + 1]))
                memcpy(pair, all[i] + k, 2);
    assert_int_equal(strlen(pair), 2);
    snprintf(settings, sizeof settings,
             "{\"tokens_to_generate\": 20, \"min_tokens\": 20, \"stop\": [\"~~\", \"%s\"]}", pair);
    make_config(settings, &stops);
    cut = texts_of(&stops, ds, 0);
    for (int i = 0; i < N_ROWS; i++) {
        char *at = strstr(all[i], pair), *tilde = strstr(all[i], "~~");

        if (tilde && (!at || tilde < at))
            at = tilde;
        with_pair += at != NULL;
        if (at)
            *at = '\0';
        strip(all[i]);
        assert_string_equal(cut[i], all[i]);
    }
    assert_true(with_pair > 0);
    sl_texts_free(all, N_ROWS);
    sl_texts_free(cut, N_ROWS);
    sl_dataset_free(ds);
    sl_config_release(&plain);
    sl_config_release(&stops);
}

/* At a temperature where every token is about as likely some rows draw EOS early, but not before
 * min_tokens. */
static void test_min_tokens_hold_off_the_end(void **state)
{
    struct sl_config c;
    struct sl_dataset *ds;
    int32_t eos = sl_tokenizer_eos(tok);
    char **texts;
    int64_t length[2] = {0, 0};

    (void)state;
    assert_true(eos >= 0);
    for (int i = 0; i < 2; i++) {
        make_config(i ? "{\"tokens_to_generate\": 60, \"min_tokens\": 60, \"greedy\": false, "
                        "\"temperature\": 20}"
                      : "{\"tokens_to_generate\": 60, \"greedy\": false, \"temperature\": 20}",
                    &c);
        ds = rows(&c, N_ROWS, 0, false);
        texts = texts_of(&c, ds, 0);
        for (int r = 0; r < N_ROWS; r++) {
            struct sl_ids ids = {0};

            ok(sl_tokenize(tok, texts[r], strlen(texts[r]), false, &ids, &err));
            length[i] += ids.n;
            sl_ids_release(&ids);
        }
        sl_texts_free(texts, N_ROWS);
        sl_dataset_free(ds);
        sl_config_release(&c);
    }
    print_message("%lld tokens, %lld with min_tokens\n", (long long)length[0],
                  (long long)length[1]);
    assert_true(length[1] > length[0] + 10);
}

static void test_a_prompt_needs_room(void **state)
{
    struct sl_config c;
    int n = -1;

    (void)state;
    make_config("{\"tokens_to_generate\": 100}", &c);
    ok(sl_prompt_positions(&c, 128, &n, &err));
    assert_int_equal(n, 28);
    assert_int_equal(sl_prompt_positions(&c, 100, &n, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "inference.tokens_to_generate 100"));
    assert_int_equal(n, 28);
    sl_err_clear(&err);
    c.data.max_seq_length = 90;
    assert_int_equal(sl_prompt_positions(&c, 128, &n, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "model.data.max_seq_length"));
    sl_err_clear(&err);
    sl_config_release(&c);
}

/* ---- the cache's bound ---- */

static void test_the_cache_is_bounded(void **state)
{
    const struct sl_arch *a = sl_model_arch(model);
    int64_t position = (int64_t)a->layers * 2 * a->kv_heads * a->head_dim * (int64_t)sizeof(float),
            used = 0;
    char path[SL_PATH_MAX], *line = NULL;
    struct sl_generator g = {
        .model = model, .tok = tok, .tuned = true, .prompts = prompts, .phase = "answering"};
    struct sl_emitter report;
    struct sl_config c;
    struct sl_dataset *ds;
    char **texts = NULL;
    size_t cap = 0;
    int begin[N_ROWS + 2], n = 0;
    FILE *f;

    (void)state;
    make_config(greedy, &c);
    ds = rows(&c, N_ROWS, 0, false);
    snprintf(path, sizeof path, "%s/events", folder);
    sl_emit_init(&report, open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600));
    g.config = &c;
    g.report = &report;
    g.cache_bytes = 100 * position; /* about three rows */
    ok(sl_generate(&g, ds, &texts, &err));
    sl_texts_free(texts, N_ROWS);
    close(report.events_fd);
    f = fopen(path, "r"); /* where each batch began */
    while (getline(&line, &cap, f) > 0) {
        json_t *e = json_loads(line, 0, NULL);

        begin[n++] = (int)sl_json_int(e, "done", -1);
        json_decref(e);
    }
    fclose(f);
    free(line);
    begin[n] = N_ROWS;
    assert_true(n > 5 && n < N_ROWS && begin[0] == 0);
    for (int b = 0; b < n; b++) {
        used = 0;
        for (int i = begin[b]; i < begin[b + 1]; i++)
            used += sl_dataset_row(ds, i).n + 12;
        assert_true(used <= 100 || begin[b + 1] == begin[b] + 1);
        if (begin[b + 1] < N_ROWS) /* no row more would have gone in */
            assert_true(used + sl_dataset_row(ds, begin[b + 1]).n + 12 > 100);
    }
    sl_dataset_free(ds);
    sl_config_release(&c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_decoded_together_answer_as_alone),
        cmocka_unit_test(test_logits_do_not_depend_on_the_batch),
        cmocka_unit_test(test_random_numbers_follow_seed_and_row),
        cmocka_unit_test(test_stop_strings_cut_the_text),
        cmocka_unit_test(test_min_tokens_hold_off_the_end),
        cmocka_unit_test(test_a_prompt_needs_room),
        cmocka_unit_test(test_the_cache_is_bounded),
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does */
        return 2;
    return cmocka_run_group_tests_name("generate", tests, setup, teardown);
}

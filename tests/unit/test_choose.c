/* Labels by likelihood, and the table of predictions: its order, its columns, the answers it is
 * compared with. */
#include "tests/unit/generate_fixture.h"

/* ---- labels ---- */

/* Likelihood of a label after row i, in a pass of its own and without a shared prefix. */
static double likelihood(const struct sl_dataset *ds, int i, const char *label, bool tuned)
{
    const struct sl_arch *a = sl_model_arch(model);
    int slot_v[] = {tuned ? 5 : 0, tuned ? 3 : 0};
    struct sl_rendered r = {0};
    struct sl_batch b;
    struct sl_row row;
    double sum = 0;
    float *loss;

    ok(sl_dataset_render(ds, i, SL_ANSWER_GIVEN, label, &r, &err));
    if (r.ids.id[r.ids.n - 1] == sl_tokenizer_eos(tok))
        r.target[r.ids.n - 1] = 0;
    row = (struct sl_row){sl_dataset_row(ds, i).slot, r.ids.n, r.ids.id, r.target};
    ok(sl_batch_pack(&row, 1, slot_v, 2, a->vocab, a->max_positions, false, 0, &b, &err));
    loss = calloc((size_t)b.n_entries + 1, sizeof *loss);
    ok(sl_model_step(model, &b, tuned ? prompts : NULL, NULL, loss, &err));
    for (int k = 0; k < b.n_counted; k++)
        sum -= (double)loss[b.row_entry[k]];
    free(loss);
    sl_batch_release(&b);
    sl_rendered_release(&r);
    return sum;
}

static void test_choices_are_the_likeliest_labels(void **state)
{
    static const char *const labels[] = {"y", "n", "p", "zebra"};

    (void)state;
    for (int tuned = 0; tuned < 2; tuned++) {
        struct sl_config c;
        struct sl_dataset *ds;
        const char **choice = NULL;
        int kinds[4] = {0};
        struct sl_generator g = {.model = model, .tok = tok, .tuned = tuned, .prompts = prompts};

        make_config(
            "{\"tokens_to_generate\": 8, \"choices\": {\"one\": [\"y\", \"n\", \"p\", \"zebra\"]}}",
            &c);
        assert_true(sl_any_choices(&c));
        g.config = &c;
        ds = rows(&c, N_ROWS, 0, !tuned);
        ok(sl_choose(&g, ds, &choice, &err));
        for (int i = 0; i < N_ROWS; i++) {
            double best = -INFINITY, mine = NAN;

            if (i % 3 == 0) { /* task two has none */
                assert_null(choice[i]);
                continue;
            }
            for (int k = 0; k < 4; k++) {
                double l = likelihood(ds, i, labels[k], tuned);

                best = fmax(best, l);
                if (!strcmp(choice[i], labels[k])) {
                    mine = l;
                    kinds[k]++;
                }
            }
            assert_true(mine > best - 1e-4);
        }
        assert_true((kinds[0] > 0) + (kinds[1] > 0) + (kinds[2] > 0) + (kinds[3] > 0) > 1);
        free(choice);
        sl_dataset_free(ds);
        sl_config_release(&c);
    }
}

/* ---- tables ---- */

static void test_predictions_keep_the_order_and_the_columns(void **state)
{
    static const char *const choice[] = {"A", NULL, "C"};
    char *text[] = {"first", "sec\"ond", "third"}, path[SL_PATH_MAX], *line = NULL;
    struct sl_predictions p = {.text = text, .choice = choice};
    struct sl_config c;
    struct sl_dataset *ds;
    char **answers = NULL, source[SL_PATH_MAX];
    const char *paths[1] = {source};
    struct sl_dataset_options how = {.answer = SL_ANSWER_NONE, .max_positions = 64};
    size_t cap = 0;
    FILE *f;

    (void)state;
    make_config("{}", &c);
    snprintf(source, sizeof source, "%s/mixed.jsonl", folder);
    f = fopen(source, "w");
    fprintf(f, "{\"taskname\": \"two\", \"context\": \"x\", \"answer\": 12}\n"
               "{\"taskname\": \"one\", \"context\": \"y\", \"extra\": 1, \"id\": \"q1\"}\n"
               "{\"taskname\": \"two\", \"context\": \"z\", \"answer\": \"blue\"}\n");
    fclose(f);
    ok(sl_dataset_open(paths, 1, &c, tok, &how, &ds, &err));
    ok(sl_row_answers(ds, &answers, &err));
    assert_string_equal(answers[0], "12");
    assert_string_equal(answers[1], "");
    assert_string_equal(answers[2], "blue");
    sl_texts_free(answers, 3);
    p.ds = ds;
    snprintf(path, sizeof path, "%s/predictions.jsonl", folder);
    ok(sl_write_predictions(path, &p, &err));
    f = fopen(path, "r");
    for (int i = 0; i < 3; i++) {
        json_t *row;

        assert_true(getline(&line, &cap, f) > 0);
        row = json_loads(line, 0, NULL);
        assert_string_equal(sl_json_str(row, "prediction", ""), text[i]);
        assert_string_equal(sl_json_str(row, "choice", "none"), choice[i] ? choice[i] : "none");
        assert_string_equal(sl_json_str(row, "context", ""), i == 0 ? "x" : i == 1 ? "y" : "z");
        assert_string_equal(sl_json_str(row, "id", ""), i == 1 ? "q1" : "");
        assert_null(json_object_get(row, "extra"));
        assert_null(json_object_get(row, "untuned"));
        json_decref(row);
    }
    assert_true(getline(&line, &cap, f) < 0);
    fclose(f);
    free(line);
    sl_dataset_free(ds);
    sl_config_release(&c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_are_the_likeliest_labels),
        cmocka_unit_test(test_predictions_keep_the_order_and_the_columns),
    };
    (void)argc;
    if (sl_cpu_reexec(argv)) /* as the worker does */
        return 2;
    return cmocka_run_group_tests_name("labels and predictions", tests, setup, teardown);
}

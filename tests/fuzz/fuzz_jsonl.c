/* Data sets: JSONL, or one JSON list, of two tasks' rows. */
#include "base/file.h"
#include "base/json.h"
#include "engine/data/dataset.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/tiny_tokenizer.h"

enum { POSITIONS = 48, VIRTUAL = 4 };

static const char config_text[] =
    "{\"model\": {\"virtual_prompt_style\": \"prompt-tuning\", \"task_templates\": ["
    "{\"taskname\": \"a\", \"prompt_template\": \"<|VIRTUAL_PROMPT_0|>{q} {c}: {answer}\","
    " \"total_virtual_tokens\": 4, \"answer_field\": \"answer\", \"answer_only_loss\": true,"
    " \"truncate_field\": \"c\"},"
    "{\"taskname\": \"b\", \"prompt_template\": \"<|VIRTUAL_PROMPT_1|> say {t} <|VIRTUAL_PROMPT_0|>\","
    " \"total_virtual_tokens\": 4, \"virtual_token_splits\": [3, 1]}]}}";

static void use(const struct sl_dataset *ds, const struct sl_config *config, enum sl_answer answer)
{
    struct sl_rendered given = {0};
    struct sl_buf where;

    sl_buf_init(&where, SL_PATH_MAX);
    for (int i = 0; i < sl_dataset_rows(ds); i++) {
        struct sl_row row = sl_dataset_row(ds, i);
        struct sl_err err = SL_ERR_INIT;
        json_t *json = NULL;
        int targets = 0;

        fuzz_check(row.n > 0 && row.n <= POSITIONS && row.slot >= 0 && row.slot < config->n_tasks);
        for (int k = 0; k < row.n; k++) {
            fuzz_check(row.id[k] >= -VIRTUAL && row.id[k] < TINY_VOCAB && row.target[k] <= 1);
            fuzz_check(!row.target[k] || (k > 0 && row.id[k] >= 0 && answer == SL_ANSWER_ROW));
            targets += row.target[k];
        }
        fuzz_check(targets == sl_dataset_row_targets(ds, i));
        fuzz_check(sl_dataset_json(ds, i, &json, &err) == 0 && json_is_object(json));
        json_decref(json);
        sl_dataset_where(ds, i, &where);
        if (sl_dataset_render(ds, i, SL_ANSWER_GIVEN, "dog", &given, &err) == 0)
            fuzz_check(given.ids.n <= POSITIONS);
    }
    sl_rendered_release(&given);
    sl_buf_release(&where);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sl_config config;
    static struct sl_tokenizer *tok;
    const char *path = fuzz_file(data, size);

    if (!tok) {
        json_t *json = NULL;
        fuzz_check(sl_json_parse(config_text, strlen(config_text), "config", &json, NULL) == 0);
        fuzz_check(sl_config_parse(json, &config, NULL) == 0);
        json_decref(json);
        tok = tiny_tokenizer(TINY_BOS, TINY_EOS);
    }
    for (enum sl_answer answer = SL_ANSWER_ROW; answer <= SL_ANSWER_NONE; answer++) {
        struct sl_dataset_options options = {.answer = answer, .max_positions = POSITIONS};
        struct sl_err err = SL_ERR_INIT;
        struct sl_dataset *ds = NULL;
        int rc = sl_dataset_open(&path, 1, &config, tok, &options, &ds, &err);

        if (rc == 0) {
            struct sl_dataset_counts n = sl_dataset_counts(ds);
            fuzz_check(n.read == n.rows + n.too_long + n.too_short && n.rows == sl_dataset_rows(ds));
            use(ds, &config, answer);
            sl_dataset_free(ds);
        } else {
            fuzz_check_error(rc, err);
        }
    }
    return 0;
}

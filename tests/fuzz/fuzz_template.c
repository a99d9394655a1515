/* Templates and rendering. Lines of the input: prompt_template, truncate_field, answer_field; the rest is a row. */
#include "base/json.h"
#include "engine/data/template.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/tiny_tokenizer.h"

enum { VIRTUAL = 4 };

/* The header's promises about one rendering. */
static void check(const struct sl_rendered *r, const struct sl_render *how)
{
    int virtual_seen = 0, targets = 0;
    bool eos = how->add_eos && how->answer != SL_ANSWER_NONE;

    fuzz_check(r->ids.n <= how->max_positions && r->answer_start >= 0 && r->answer_start <= r->ids.n);
    for (int i = 0; i < r->ids.n; i++) {
        int32_t id = r->ids.id[i];
        fuzz_check(id < TINY_VOCAB && id >= -VIRTUAL && r->target[i] <= 1);
        if (id < 0)
            virtual_seen |= 1 << (-id - 1);
        if (r->target[i])
            fuzz_check(i > 0 && id >= 0 && how->answer != SL_ANSWER_NONE);
        targets += r->target[i];
    }
    fuzz_check(targets == r->n_targets);
    fuzz_check(virtual_seen == (how->no_virtual ? 0 : (1 << VIRTUAL) - 1));
    fuzz_check(!eos || (r->ids.n > 0 && r->ids.id[r->ids.n - 1] == TINY_EOS));
    fuzz_check(!how->add_bos || (r->ids.n > 0 && r->ids.id[0] == TINY_BOS));
}

static void render(const struct sl_template *t, const json_t *row)
{
    static struct sl_rendered out;
    struct sl_err err = SL_ERR_INIT;
    const struct sl_render hows[] = {
        {.answer = SL_ANSWER_ROW, .add_eos = true, .max_positions = 1 << 20},
        {.answer = SL_ANSWER_ROW, .add_bos = true, .add_eos = true, .max_positions = 24},
        {.answer = SL_ANSWER_NONE, .add_bos = true, .strip_around_markers = true, .max_positions = 40},
        {.answer = SL_ANSWER_GIVEN, .given = " dog", .add_eos = true, .no_virtual = true, .max_positions = 40}};

    for (size_t i = 0; i < sizeof hows / sizeof *hows; i++) {
        int rc = sl_template_render(t, row, &hows[i], &out, &err);
        if (rc == 0)
            check(&out, &hows[i]);
        else if (rc < 0)
            fuzz_check_error(rc, err);
        sl_err_clear(&err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sl_tokenizer *tok;
    char *line[4] = {fuzz_text(data, size)};
    json_t *row = NULL;

    if (!tok)
        tok = tiny_tokenizer(TINY_BOS, TINY_EOS);
    for (int i = 1; i < 4; i++) {
        char *end = strchr(line[i - 1], '\n');
        line[i] = end ? end + 1 : line[i - 1] + strlen(line[i - 1]);
        if (end)
            *end = '\0';
    }
    if (sl_json_parse(line[3], strlen(line[3]), "row", &row, NULL) || !json_is_object(row)) {
        json_decref(row);
        row = json_object();
    }
    for (int splits = 1; splits <= 2; splits++) {
        struct sl_task task = {.name = "task",
                               .prompt_template = line[0],
                               .total_virtual_tokens = VIRTUAL,
                               .n_splits = splits,
                               .split = {splits == 1 ? VIRTUAL : VIRTUAL - 1, 1},
                               .truncate_field = line[1][0] ? line[1] : NULL,
                               .answer_field = line[2][0] ? line[2] : NULL,
                               .answer_only_loss = splits == 1};
        struct sl_err err = SL_ERR_INIT;
        struct sl_template *t = NULL;
        int rc = sl_template_new(&task, tok, &t, &err);
        if (rc == 0)
            render(t, row);
        else
            fuzz_check_error(rc, err);
        sl_template_free(t);
    }
    json_decref(row);
    free(line[0]);
    return 0;
}

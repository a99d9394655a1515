/* Runs of several trials on the recorded tiny model. */
#ifndef SL_TESTS_UNIT_TRIALS_H
#define SL_TESTS_UNIT_TRIALS_H
#include "tests/unit/train_run.h"

#define MAX_TRIALS 5
#define MAX_KEYS 8

struct trial {
    const char *name, *tasks; /* tasks: JSON, or NULL */
    const char *keys[MAX_KEYS]; /* key=value */
};

/* Of other sizes, types, styles and rates; c and d have rows of other lengths. */
static const struct trial various[] = {
    {"a", NULL, {"model.seed=5"}},
    {"b",
     NULL,
     {"model.seed=6", "model.optim.lr=0.05", "model.p_tuning.encoder_type=mlp",
      "model.p_tuning.encoder_hidden=16", "model.p_tuning.num_layers=3", "model.optim.weight_decay=0.1",
      "trainer.gradient_clip_val=0.05"}},
    {"c.1",
     NULL,
     {"model.task_templates.0.total_virtual_tokens=9", "model.task_templates.1.total_virtual_tokens=9",
      "model.task_templates.1.virtual_token_splits=[4,5]", "model.p_tuning.encoder_type=lstm",
      "model.p_tuning.dropout=0.2", "model.optim.betas=[0.8,0.9]"}},
    {"d_2",
     NULL,
     {"model.virtual_prompt_style=prompt-tuning", "model.optim.lr=0.1", "model.seed=8",
      "model.task_templates.0.total_virtual_tokens=2", "model.task_templates.1.total_virtual_tokens=2",
      "model.task_templates.1.virtual_token_splits=[1,1]", "model.optim.sched.warmup_steps=0"}},
    {"e-3", "[\"two\"]", {"model.seed=9"}},
};
#define N_VARIOUS ((int)(sizeof various / sizeof *various))

/* A run's "trials=[...]". */
static inline char *list_trials(const struct trial *t, int n)
{
    json_t *list = json_array();
    char *text, *both = NULL;

    for (int i = 0; i < n; i++) {
        json_t *keys = json_object(), *one = json_pack("{s:s, s:o}", "name", t[i].name, "overrides", keys);

        if (t[i].tasks)
            json_object_set_new(one, "tasks", json_loads(t[i].tasks, 0, NULL));
        for (const char *const *k = t[i].keys; *k; k++) {
            const char *value = strchr(*k, '=') + 1;
            char key[128];
            json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);

            snprintf(key, sizeof key, "%.*s", (int)(value - *k - 1), *k);
            json_object_set_new(keys, key, v ? v : json_string(value));
        }
        json_array_append_new(list, one);
    }
    text = json_dumps(list, JSON_COMPACT);
    assert_true(asprintf(&both, "trials=%s", text) > 0);
    free(text);
    json_decref(list);
    return both;
}

static inline void trials_dir(char dir[SL_PATH_MAX], const struct trial *t, int n, const char *const *more)
{
    const char *overrides[MAX_KEYS + 2] = {NULL};
    char *trials = list_trials(t, n);
    int at = 0;

    for (; more && *more; more++)
        overrides[at++] = *more;
    overrides[at] = trials;
    train_dir(dir, overrides);
    free(trials);
}

#endif

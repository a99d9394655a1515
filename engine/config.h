/* A run's configuration: the `config` object of a job spec (NeMo's keys) as plain C values.
 *
 * Filled from JSON that sl_spec_validate_config accepts; every default is written in
 * base/job.schema.json, but for those that depend on other keys, which are the constants below.
 * Immutable after sl_config_parse. */
#ifndef SL_ENGINE_CONFIG_H
#define SL_ENGINE_CONFIG_H
#include "base/err.h"
#include "base/spec.h"
#include "engine/encoder.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Learning rate of a config that names none, by style; from the sweep in the README. */
#define SL_DEFAULT_LR_PROMPT_TUNING 3e-2
#define SL_DEFAULT_LR_P_TUNING 3e-3

enum sl_style { SL_STYLE_P_TUNING, SL_STYLE_PROMPT_TUNING, SL_STYLE_NO_PROMPTS };
enum sl_init_method { SL_INIT_RANDOM, SL_INIT_TEXT };
enum sl_taskname_rows { SL_TASKNAME_ROWS_AUTO, SL_TASKNAME_ROWS_ON, SL_TASKNAME_ROWS_OFF };
enum sl_metric {
    SL_METRIC_ACCURACY,
    SL_METRIC_BLEU,
    SL_METRIC_ROUGE,
    SL_METRIC_EXACT_MATCH,
    SL_METRIC_F1
};

/* One entry of model.task_templates. Its index in sl_config.task is the run's task index (and
 * prompt slot). */
struct sl_task {
    char *name;
    char *prompt_template;
    int total_virtual_tokens; /* 0 exactly with SL_STYLE_NO_PROMPTS */
    int n_splits;
    int split[SL_SPEC_MAX_SPLITS]; /* sums to total_virtual_tokens */
    char *truncate_field;          /* NULL: rows too long are skipped */
    char *answer_field;            /* NULL: none named */
    bool answer_only_loss;
    bool is_new;         /* trained; else an existing task whose rows never change */
    enum sl_style style; /* the template's own, else the config's */
    enum sl_init_method init_method; /* of a new task's prompt rows, prompt tuning only */
    char *init_text;                 /* NULL unless init_method is SL_INIT_TEXT */
    int n_choices;
    char **choice; /* labels to score by likelihood; may be NULL */
};

struct sl_strings {
    int n;
    char **s;
};

struct sl_config {
    struct {
        int devices;
        enum sl_precision precision;
        int max_epochs;            /* -1: no limit (then max_steps is set) */
        int max_steps;             /* optimizer steps; -1: by epochs */
        double val_check_fraction; /* of an epoch, in (0, 1]; 0: val_check_steps holds */
        int val_check_steps;  /* optimizer steps between validations; 0: val_check_fraction holds */
        double gradient_clip; /* global norm; 0: none */
        int accumulate_grad_batches; /* global batches per optimizer step */
    } trainer;

    struct {
        bool resume_if_exists;
        int save_top_k;       /* best tables by val_loss that a run leaves in out/top_k */
        bool save_best_model; /* the exported table is that of the best val_loss */
        bool early_stopping;
        double min_delta;
        int patience; /* validations without an improvement over min_delta */
    } exp;

    uint64_t seed;
    enum sl_style style;
    int global_batch, micro_batch; /* rows */
    char *restore_path;            /* an earlier prompt table; NULL: none */
    char *language_model_path;     /* NULL: given otherwise */
    char *nemo_path;               /* where a .nemo export goes; NULL: none */
    bool report_validation_metric;
    enum sl_metric validation_metric;

    int n_tasks, n_new_tasks;
    struct sl_task *task;   /* in template order */
    int new_virtual_tokens; /* V that all new tasks share; 0 without new tasks */

    struct {
        enum sl_encoder_type encoder_type; /* of p-tuning tasks; never SL_ENC_TABLE */
        double dropout;                    /* lstm only */
        int num_layers;                    /* mlp: linear layers, at least 2; lstm: LSTM layers */
        int encoder_hidden;
        double init_std; /* tpmlp */
        enum sl_taskname_rows taskname_rows;
    } p_tuning;

    struct {
        struct sl_strings train, validation,
            test; /* files; empty when a job's datasets name them */
        bool add_bos, add_eos, shuffle;
        bool strip_space_around_virtual_tokens;
        int max_seq_length; /* positions, virtual ones included; 0: what the model allows */
        int min_seq_length; /* positions; shorter rows are skipped */
    } data;

    struct {
        double lr;
        bool lr_is_default; /* the config named none: one of the constants above */
        double beta1, beta2, weight_decay, eps;
        int warmup_steps, constant_steps;
        double min_lr;
    } optim;

    struct {
        bool greedy;
        int top_k;                 /* 0: off */
        double top_p;              /* 1: off */
        double temperature;        /* > 0 */
        double repetition_penalty; /* 1: off */
        int tokens_to_generate, min_tokens;
        struct sl_strings stop; /* a text ends before the first of them */
    } inference;
};

/* Validates (base/spec.h) and fills *ret_config, which the caller releases. SL_SPEC with every
 * error in the message, SL_NOMEM. */
int sl_config_parse(const json_t *config, struct sl_config *ret_config, struct sl_err *err);
/* Reads a JSON file that is a config, a job spec or a run.json (an object with "config"), or NeMo YAML
 * (*.yaml, *.yml; base/config_yaml.h, whose notes are left out). Blocks. */
int sl_config_read(const char *path, struct sl_config *ret_config, struct sl_err *err);
void sl_config_release(struct sl_config *c); /* NULL-safe; c is all zero afterwards */
bool sl_strings_have(const struct sl_strings *s, const char *text); /* s may be NULL */
/* Index in c->task, or -1. */
int sl_config_task(const struct sl_config *c, const char *name);

const char *sl_style_name(enum sl_style style); /* "p-tuning" */
/* The learning rate of a config that names none. */
double sl_default_lr(enum sl_style style);
const char *sl_metric_name(enum sl_metric metric); /* "accuracy" */
/* "tpmlp"; "table" for SL_ENC_TABLE */
const char *sl_encoder_type_name(enum sl_encoder_type type);

#endif

#include "base/nemo_keys.h"
#include "base/json.h"
#include "base/schema.h"
#include <stdio.h>
#include <string.h>

enum meaning {
    NOTHING,
    MUST_BE_OFF, /* set, it would change the result */
    FOLDER       /* of a run by hand */
};

static const struct {
    const char *section, *key;
    enum meaning meaning;
} others[] = {
    {"", "hydra", NOTHING},
    {"trainer", "accelerator", NOTHING},
    {"trainer", "strategy", NOTHING},
    {"trainer", "num_nodes", NOTHING},
    {"trainer", "logger", NOTHING},
    {"trainer", "enable_checkpointing", NOTHING},
    {"trainer", "enable_progress_bar", NOTHING},
    {"trainer", "enable_model_summary", NOTHING},
    {"trainer", "replace_sampler_ddp", NOTHING},
    {"trainer", "use_distributed_sampler", NOTHING},
    {"trainer", "log_every_n_steps", NOTHING},
    {"trainer", "num_sanity_val_steps", NOTHING},
    {"trainer", "benchmark", NOTHING},
    {"trainer", "deterministic", NOTHING},
    {"trainer", "resume_from_checkpoint", MUST_BE_OFF},
    {"trainer", "check_val_every_n_epoch", MUST_BE_OFF},
    {"trainer", "max_time", MUST_BE_OFF},
    {"trainer", "limit_train_batches", MUST_BE_OFF},
    {"trainer", "limit_val_batches", MUST_BE_OFF},
    {"trainer", "limit_test_batches", MUST_BE_OFF},
    {"exp_manager", "explicit_log_dir", FOLDER},
    {"exp_manager", "exp_dir", FOLDER},
    {"exp_manager", "name", FOLDER},
    {"exp_manager", "version", NOTHING},
    {"exp_manager", "use_datetime_version", NOTHING},
    {"exp_manager", "create_wandb_logger", NOTHING},
    {"exp_manager", "wandb_logger_kwargs", NOTHING},
    {"exp_manager", "create_tensorboard_logger", NOTHING},
    {"exp_manager", "summary_writer_kwargs", NOTHING},
    {"exp_manager", "create_checkpoint_callback", NOTHING},
    {"exp_manager", "log_step_timing", NOTHING},
    {"exp_manager", "step_timing_kwargs", NOTHING},
    {"exp_manager", "resume_ignore_no_checkpoint", NOTHING},
    {"exp_manager", "resume_past_end", NOTHING},
    {"exp_manager.checkpoint_callback_params", "save_nemo_on_train_end", NOTHING},
    {"exp_manager.checkpoint_callback_params", "always_save_nemo", NOTHING},
    {"exp_manager.checkpoint_callback_params", "filename", NOTHING},
    {"exp_manager.checkpoint_callback_params", "model_parallel_size", NOTHING},
    {"exp_manager.checkpoint_callback_params", "verbose", NOTHING},
    {"exp_manager.early_stopping_callback_params", "verbose", NOTHING},
    {"exp_manager.early_stopping_callback_params", "strict", NOTHING},
    {"model", "tensor_model_parallel_size", NOTHING},
    {"model", "pipeline_model_parallel_size", NOTHING},
    {"model", "pipeline_model_parallel_split_rank", NOTHING},
    {"model", "sequence_parallel", NOTHING},
    {"model", "activations_checkpoint_granularity", NOTHING},
    {"model", "activations_checkpoint_method", NOTHING},
    {"model", "activations_checkpoint_num_layers", NOTHING},
    {"model", "validation_global_batch_size", NOTHING},
    {"model", "validation_micro_batch_size", NOTHING},
    {"model", "validation_drop_last", NOTHING},
    {"model", "save_nemo_on_validation_end", NOTHING},
    {"model", "megatron_amp_O2", NOTHING},
    {"model", "gradient_as_bucket_view", NOTHING},
    {"model", "encoder_seq_length", NOTHING},
    {"model", "hidden_size", NOTHING},
    {"model", "precision", NOTHING},
    {"model.data", "num_workers", NOTHING},
    {"model.data", "pin_memory", NOTHING},
    {"model.data", "persistent_workers", NOTHING},
    {"model.data", "train_cache_data_path", NOTHING},
    {"model.data", "validation_cache_data_path", NOTHING},
    {"model.data", "test_cache_data_path", NOTHING},
    {"model.data", "load_cache", NOTHING},
    {"model.optim.sched", "monitor", NOTHING},
    {"model.optim.sched", "reduce_on_plateau", MUST_BE_OFF},
};

int sl_nemo_keys_leave_out(json_t *config, json_t *errors, struct sl_buf *list)
{
    char path[128];
    int rc = 0;

    for (size_t i = 0; i < sizeof others / sizeof *others && !rc; i++) {
        json_t *section = (json_t *)sl_json_get(config, others[i].section);
        json_t *value = json_object_get(section, others[i].key);

        if (!value)
            continue;
        snprintf(path, sizeof path, "%s%s%s", others[i].section, *others[i].section ? "." : "",
                 others[i].key);
        if (others[i].meaning == MUST_BE_OFF && !json_is_null(value) && !json_is_false(value))
            rc = sl_schema_error(errors, path, "null", value,
                                 "softlaunch has nothing like it: remove it, or set it to null");
        else if (others[i].meaning == NOTHING && !json_is_null(value))
            rc = sl_buf_addf(list, "%s%s", list->len ? ", " : "", path);
        json_object_del(section, others[i].key);
    }
    return rc ? SL_NOMEM : 0;
}

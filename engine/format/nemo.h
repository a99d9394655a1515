/* NeMo 1.x .nemo archives of Megatron GPT models: what nemo.c (tensors), nemo_config.c (the
 * architecture in model_config.yaml) and tables_import.c (prompt tables) share. Not for others. */
#ifndef SL_ENGINE_NEMO_H
#define SL_ENGINE_NEMO_H
#include "base/json.h"
#include "engine/format/tar.h"
#include "engine/format/torch_zip.h"
#include "engine/weights.h"

#define SL_NEMO_CONFIG "model_config.yaml"
#define SL_NEMO_WEIGHTS "model_weights.ckpt"
#define SL_NEMO_MAX_TENSOR_PARALLEL 64
#define SL_NEMO_MAX_PIPELINE 128

/* model_config.yaml as JSON; new reference. SL_DATA without it. */
int sl_nemo_config(const struct sl_tar *tar, json_t **ret_config, struct sl_err *err);
/* A number of the configuration; a reference such as ${.encoder_seq_length} is followed.
 * otherwise < 0: it must be there. SL_DATA for what is no number in range. */
int sl_nemo_int(const json_t *config, const char *key, int otherwise, int *ret_v,
                struct sl_err *err);
/* Fills what the configuration says, but for vocab and tied. What is not supported is refused by
 * its key (SL_SPEC). */
int sl_nemo_arch(const json_t *config, struct sl_arch *a, struct sl_err *err);
/* The tokenizer whose files are in the archive. SL_NOTFOUND when they are not. */
struct sl_tokenizer;
int sl_nemo_tokenizer(const struct sl_tar *tar, const json_t *config, struct sl_tokenizer **ret_tok,
                      struct sl_err *err);

#endif

/* What config.json of a Hugging Face model says. Internal to the loader of Hugging Face
 * directories.
 *
 * Supported model types: gpt2, llama (SmolLM2 too), mistral, qwen2, qwen3. Keys that change what is
 * computed and are not supported are refused by name (SL_SPEC); a key that is missing has the
 * default of its class in transformers, or is asked for where models differ in it (SL_DATA). */
#ifndef SL_ENGINE_HF_CONFIG_H
#define SL_ENGINE_HF_CONFIG_H
#include "engine/weights.h"

#define SL_HF_CONFIG_MAX (256u << 10) /* bytes; see SL_ST_HEADER_MAX */

/* What the layers have besides the common: bits */
enum { SL_HF_QKV_BIAS = 1, SL_HF_O_BIAS = 2, SL_HF_MLP_BIAS = 4, SL_HF_QK_NORM = 8 };

/* Fills *arch, which the caller has zeroed, also in part when it fails. */
int sl_hf_read_config(const char *path, struct sl_arch *arch, unsigned *ret_extras,
                      struct sl_err *err);

#endif

/* SentencePiece's library behind C. The only C++ here; no exception leaves it. */
#ifndef SL_ENGINE_SPM_H
#define SL_ENGINE_SPM_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

struct sl_spm; /* immutable after creation: many threads may use it */

/* A serialised model that sl_spm_model_read has checked. SL_DATA with the library's words when it
 * refuses it. */
int sl_spm_new(const void *data, size_t len, struct sl_spm **ret_spm, struct sl_err *err);
void sl_spm_free(struct sl_spm *s);
int sl_spm_bos(const struct sl_spm *s); /* -1: none */
int sl_spm_eos(const struct sl_spm *s);

/* Called once with all ids; returns 0 or a code that sl_spm_encode then returns. */
typedef int sl_spm_ids_fn(void *arg, const int *ids, size_t n);
int sl_spm_encode(const struct sl_spm *s, const char *text, size_t len, sl_spm_ids_fn *fn,
                  void *arg, struct sl_err *err);

#ifdef __cplusplus
}
#endif
#endif

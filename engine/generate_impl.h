/* Inside of engine/generate.h: shared by generate.c and choose.c. */
#ifndef SL_ENGINE_GENERATE_IMPL_H
#define SL_ENGINE_GENERATE_IMPL_H
#include "engine/generate.h"

/* Reports progress; SL_CANCELLED when control asks to stop. */
int sl_generate_go_on(const struct sl_generator *g, int64_t done, int64_t total,
                      struct sl_err *err);

#endif

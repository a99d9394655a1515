/* What packing and unpacking share. Nobody else includes this. */
#ifndef SL_ARTIFACTS_PACK_PRIV_H
#define SL_ARTIFACTS_PACK_PRIV_H
#include "artifacts/pack.h"
#include <archive.h>

#define SL_PACK_CHUNK_BYTES (256u << 10)

int sl_pack_add_entry(json_t *entries, const char *path, const char *sha256, int64_t bytes,
                      struct sl_err *err);
/* SL_DATA or SL_NOMEM with what libarchive says. */
int sl_pack_failed(struct archive *a, const char *what, struct sl_err *err);
/* Unpacks the archive that fd is open at into the folder root, which is there. On failure root holds what
 * came before. */
int sl_unpack_into(int fd, const char *root, const struct sl_watch *watch, json_t **ret_entries,
                   struct sl_err *err);

#endif

/* Tarballs (.tar, .tar.gz, .tar.zst) through libarchive: streamed in and out, hashed on the way.
 *
 * What is packed is a function of the files' paths and bytes alone (sorted, no times, owners or
 * modes), so equal folders give equal digests. What is unpacked may come from anybody: regular
 * files and folders only, paths below dest only, modes 0644 and 0755, the limits below; anything
 * else is SL_DATA with the entry's name, and dest appears whole or not at all. Unpacking is done by a
 * child, this program once more, which has nothing of our memory and environment, may write below dest only and
 * use no TCP (where the kernel has Landlock), gains no privileges, and has limits of memory, time and file size:
 * when a fault of a library kills it, that is SL_DATA too. Blocks. */
#ifndef SL_ARTIFACTS_PACK_H
#define SL_ARTIFACTS_PACK_H
#include "artifacts/watch.h"
#include "base/digest.h"
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_UNPACK_MAX_ENTRIES 10000
#define SL_UNPACK_MAX_BYTES (INT64_C(1) << 38)
#define SL_UNPACK_MAX_RATIO 200           /* unpacked over packed bytes... */
#define SL_UNPACK_RATIO_FROM (64ll << 20) /* ...once so much came out */
#define SL_UNPACK_MAX_MEMORY (1ll << 30)  /* bytes of address space besides the caller's */
#define SL_UNPACK_MAX_CPU_S 7200
#define SL_UNPACK_STALL_S 600 /* without a byte for so long the child is given up: SL_RETRY */

struct sl_packed {
    char sha256[SL_SHA256_HEX + 1]; /* of the tarball */
    int64_t bytes;
    json_t *entries; /* [{"path", "sha256", "bytes"}, ...]; the caller's reference */
};

bool sl_is_tarball(const char *path); /* by its name: .tar.zst, .tar.gz or .tar */
/* Packs the files below dir into path, whose ending chooses the compression. path is removed on
 * failure. watch counts the bytes read. SL_SPEC as sl_tree_list; SL_DATA: a file changed while it
 * was read. */
int sl_pack(const char *dir, const char *path, const struct sl_watch *watch,
            struct sl_packed *ret_packed, struct sl_err *err);
/* Unpacks into dest, which must not exist; its parent must. ret_entries (may be NULL): as in
 * sl_packed. */
int sl_unpack(const char *path, const char *dest, const struct sl_watch *watch,
              json_t **ret_entries, struct sl_err *err);
/* To be called first in main by a program that calls sl_unpack: in the child that does the unpacking it does not
 * return. */
void sl_unpack_main(int argc, char **argv);
/* As sl_unpack, in this process: for the fuzzer, which wants to see the faults. */
int sl_unpack_here(const char *path, const char *dest, const struct sl_watch *watch,
                   json_t **ret_entries, struct sl_err *err);

#endif

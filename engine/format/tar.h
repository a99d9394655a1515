/* Tar archives, plain or gzip'd, as maps: what a .nemo file is.
 *
 * Reading: the file is mapped and members point into the map; a gzip'd one is unpacked to an
 * unlinked temporary file first, beside it or in TMPDIR (/tmp). POSIX ustar, pax and GNU headers.
 * Only regular files are members; links and devices are passed over, a leading "./" is cut off.
 * Every header's checksum, size and place is checked. Writing: two or more files into one plain
 * ustar archive, members owned by nobody in particular. Everything here blocks. Messages do not
 * name the file: the caller does. */
#ifndef SL_ENGINE_TAR_H
#define SL_ENGINE_TAR_H
#include "base/err.h"
#include "base/file.h"

#define SL_TAR_MAX_MEMBERS 8192
#define SL_TAR_NAME_MAX 512 /* bytes, NUL included */
/* A gzip'd archive may become this much bigger, beyond SL_TAR_FREE_BYTES. */
#define SL_TAR_MAX_RATIO 64
#define SL_TAR_FREE_BYTES (64u << 20)

struct sl_tar_member {
    char *name;
    const unsigned char *data;
    size_t len;
};
struct sl_tar {
    struct sl_map map;
    struct sl_tar_member *member; /* in file order, names differ */
    int n;
};

/* SL_NOTFOUND, SL_IO (also: no room for the unpacked archive), SL_NOMEM; SL_DATA for what is wrong
 * with the content. */
int sl_tar_open(const char *path, struct sl_tar *ret_tar, struct sl_err *err);
void sl_tar_close(struct sl_tar *t);                                               /* NULL-safe */
const struct sl_tar_member *sl_tar_find(const struct sl_tar *t, const char *name); /* or NULL */

/* Writes path durably and atomically; names of at most 99 bytes. */
int sl_tar_write(const char *path, const struct sl_tar_member *members, int n, struct sl_err *err);

#endif

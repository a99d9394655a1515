/* Files: whole reads, durable writes, trees, read-only maps. Everything here blocks. */
#ifndef SL_BASE_FILE_H
#define SL_BASE_FILE_H
#include "base/buf.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define SL_PATH_MAX 4096

/* Appends the whole file to buf (its max is the limit). SL_NOTFOUND, SL_IO, SL_NOMEM. */
int sl_file_read(const char *path, struct sl_buf *buf, struct sl_err *err);
/* Writes path by way of a temporary file beside it: fsync, rename, fsync of the folder. Never half a file. */
int sl_file_write(const char *path, const void *data, size_t len, struct sl_err *err);
/* fsync of a folder, so that a rename in it survives a power cut. */
int sl_dir_sync(const char *path, struct sl_err *err);
/* mkdir -p, mode 0755. */
int sl_mkdirs(const char *path, struct sl_err *err);
/* Calls fn for each name in a folder that does not begin with a dot, in no order; fn's error ends it. fn may remove
 * what it is called for. SL_NOTFOUND: there is no such folder. */
typedef int sl_dir_fn(void *arg, const char *path, const char *name, struct sl_err *err);
int sl_dir_each(const char *dir, sl_dir_fn *fn, void *arg, struct sl_err *err);
/* rm -rf; a missing path is fine; never follows links. */
int sl_rmtree(const char *path, struct sl_err *err);
/* snprintf into a path buffer of SL_PATH_MAX bytes; SL_SPEC if it does not fit. */
int sl_path(char ret_path[SL_PATH_MAX], struct sl_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
bool sl_file_exists(const char *path);
/* write(2) until everything is out. */
int sl_write_all(int fd, const void *data, size_t len, struct sl_err *err);

/* A read-only map of a whole file; data is NULL for an empty one. */
struct sl_map {
    const unsigned char *data;
    size_t len;
};
int sl_map_open(const char *path, struct sl_map *ret_map, struct sl_err *err);
/* The pages that were read so far no longer count as this process's memory; what is looked at again is
 * read again. */
void sl_map_forget(const struct sl_map *map);
void sl_map_close(struct sl_map *map);

#endif

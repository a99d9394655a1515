/* The regular files below a folder, by path in byte order. Blocks. */
#ifndef SL_ARTIFACTS_TREE_H
#define SL_ARTIFACTS_TREE_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_TREE_MAX_FILES 10000

struct sl_tree_file {
    char *path; /* relative to the folder, valid by sl_entry_path_valid */
    int64_t bytes;
};
struct sl_tree {
    struct sl_tree_file *files;
    size_t n;
    int64_t bytes; /* of all files */
};

/* Links are followed when follow_links (a loop ends at the depth limit), else refused; sockets,
 * devices and other things that are not files are refused by name. SL_SPEC: one of those, a limit,
 * or no file at all. */
int sl_tree_list(const char *dir, bool follow_links, struct sl_tree *ret_tree, struct sl_err *err);
void sl_tree_release(struct sl_tree *tree); /* NULL-safe */

#endif

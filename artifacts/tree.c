#include "artifacts/tree.h"
#include "artifacts/names.h"
#include "base/file.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int add_file(struct sl_tree *tree, const char *path, int64_t bytes, struct sl_err *err)
{
    if (tree->n == SL_TREE_MAX_FILES)
        return sl_err_set(err, SL_SPEC, "more than %d files", SL_TREE_MAX_FILES);
    if ((tree->n & (tree->n - 1)) == 0) { /* grows at powers of two */
        size_t cap = tree->n ? tree->n * 2 : 1;
        struct sl_tree_file *files = realloc(tree->files, cap * sizeof *files);
        if (!files)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        tree->files = files;
    }
    char *copy = strdup(path);
    if (!copy)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    tree->files[tree->n++] = (struct sl_tree_file){copy, bytes};
    tree->bytes += bytes;
    return 0; /* cppcheck-suppress memleak ; copy is the tree's */
}

/* below: the folder's path inside the tree, "" for the top. */
static int walk(const char *root, const char *below, bool follow, struct sl_tree *tree,
                struct sl_err *err)
{
    char dir[SL_PATH_MAX], full[SL_PATH_MAX], path[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s%s%s", root, *below ? "/" : "", below);
    DIR *d = rc ? NULL : opendir(dir);
    if (!d)
        return rc ? rc : sl_err_errno(err, "reading folder %s", dir);
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        rc = sl_path(path, err, "%s%s%s", below, *below ? "/" : "", e->d_name);
        if (rc == 0)
            rc = sl_path(full, err, "%s/%s", dir, e->d_name);
        if (rc)
            break;
        if (!sl_entry_path_valid(path))
            rc = sl_err_set(err, SL_SPEC,
                            "%s: a path inside an artifact has at most %d bytes, %d parts, and no "
                            "backslash or control character",
                            full, SL_ENTRY_PATH_MAX, SL_ENTRY_DEPTH_MAX);
        else if (follow ? stat(full, &st) : lstat(full, &st))
            rc = sl_err_errno(err, "looking at %s", full);
        else if (S_ISDIR(st.st_mode))
            rc = walk(root, path, follow, tree, err);
        else if (S_ISREG(st.st_mode))
            rc = add_file(tree, path, st.st_size, err);
        else
            rc = sl_err_set(err, SL_SPEC, "%s is %s: only files and folders can be taken", full,
                            S_ISLNK(st.st_mode) ? "a symbolic link" : "not a regular file");
    }
    closedir(d);
    return rc;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct sl_tree_file *)a)->path, ((const struct sl_tree_file *)b)->path);
}

int sl_tree_list(const char *dir, bool follow_links, struct sl_tree *ret_tree, struct sl_err *err)
{
    struct sl_tree tree = {NULL, 0, 0};
    int rc = walk(dir, "", follow_links, &tree, err);
    if (rc == 0 && !tree.files)
        rc = sl_err_set(err, SL_SPEC, "there is no file in %s", dir);
    if (rc || !tree.files) {
        sl_tree_release(&tree);
        return sl_err_wrap(err, rc, "folder %s", dir);
    }
    qsort(tree.files, tree.n, sizeof *tree.files, compare_files);
    *ret_tree = tree;
    return 0;
}

void sl_tree_release(struct sl_tree *tree)
{
    if (!tree)
        return;
    for (size_t i = 0; i < tree->n; i++)
        free(tree->files[i].path);
    free(tree->files);
    *tree = (struct sl_tree){NULL, 0, 0};
}

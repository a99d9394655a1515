#include "cli/artifact_get.h"
#include "artifacts/small.h"
#include "base/json.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LISTED 16384 /* files looked at together: memory stays small whatever a version has */
#define BATCH 256    /* of them that come each in a request of its own */

/* *ret_there: dest has that content already. SL_CONFLICT: it has another. */
static int check_dest(const char *dest, const char *sha256, bool *ret_there, struct sl_err *err)
{
    char found[SL_SHA256_HEX + 1];
    *ret_there = sl_file_exists(dest);
    if (!*ret_there || (sl_sha256_file(dest, found, NULL, NULL) == 0 && strcmp(found, sha256) == 0))
        return 0;
    return sl_err_set(err, SL_CONFLICT, "%s is there and has other content: move it away first",
                      dest);
}

/* Moves one that was fetched to dest, which then is an ordinary file of its own. */
static int move_to(const char *from, const char *dest, struct sl_err *err)
{
    char parent[SL_PATH_MAX];
    int rc = sl_path(parent, err, "%s", dest);
    if (rc)
        return rc;
    *strrchr(parent, '/') = 0;
    rc = sl_mkdirs(parent, err);
    if (rc == 0 && (chmod(from, 0644) || utimensat(AT_FDCWD, from, NULL, 0) || rename(from, dest)))
        rc = sl_err_errno(err, "moving %s into place", dest);
    return rc;
}

/* Downloads n files that did not come together, and moves each to its place. */
static int get_alone(const struct sl_transfer *t, const struct sl_cache *part, const struct sl_want *wants, size_t n,
                     struct sl_err *err)
{
    struct sl_got *gots = calloc(BATCH, sizeof *gots);
    int rc = gots ? sl_transfer_many(t, part, wants, n, gots, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (strcmp(gots[i].path, wants[i].dest) == 0)
            continue; /* it went there at once */
        if (!sl_file_exists(gots[i].path)) /* moved for a file of equal content */
            rc = sl_transfer_want(t, part, &wants[i], &gots[i], err);
        if (rc == 0)
            rc = move_to(gots[i].path, wants[i].dest, err);
    }
    free(gots);
    return rc;
}

/* What is looked at together, with the texts that it points to. */
struct listed {
    struct sl_want *wants;
    char **texts; /* two for each */
    bool *done;
    size_t n;
};

static int add(struct listed *l, const struct sl_transfer *t, const json_t *file, const char *dest, struct sl_err *err)
{
    const char *sha256 = sl_json_str(file, "sha256", "");
    char url[SL_PATH_MAX];
    int rc = sl_path(url, err, "%s/api/v1/blobs/%s", t->server, sha256);
    if (rc)
        return rc;
    char **texts = &l->texts[2 * l->n];
    texts[0] = strdup(url);
    texts[1] = strdup(dest);
    l->done[l->n] = false;
    l->wants[l->n++] = (struct sl_want){.what = sl_json_str(file, "path", ""),
                                        .url = texts[0],
                                        .sha256 = sha256,
                                        .bytes = sl_json_int(file, "bytes", -1),
                                        .parts = json_object_get(file, "parts"),
                                        .dest = texts[1]};
    return texts[0] && texts[1] ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
}

/* Downloads what is listed, unless rc says that something went wrong; empties the list. */
static int get_listed(const struct sl_transfer *t, const struct sl_cache *part, struct listed *l, int rc,
                      struct sl_err *err)
{
    size_t left = 0;
    if (rc == 0 && l->n)
        rc = sl_small_many(t, part, l->wants, l->n, NULL, l->done, err);
    for (size_t i = 0; i < l->n; i++)
        if (!l->done[i])
            l->wants[left++] = l->wants[i];
    for (size_t i = 0; rc == 0 && i < left; i += BATCH)
        rc = get_alone(t, part, l->wants + i, left - i < BATCH ? left - i : BATCH, err);
    for (size_t i = 0; i < 2 * l->n; i++)
        free(l->texts[i]);
    l->n = 0;
    return rc;
}

int artifact_get_files(const struct sl_transfer *t, const struct sl_cache *part, const json_t *record,
                       const char *only, const char *dir, struct sl_err *err)
{
    const json_t *files = json_object_get(record, "files");
    size_t n = json_array_size(files), room = n < LISTED ? n : LISTED;
    struct listed l = {calloc(room, sizeof *l.wants), calloc(2 * room, sizeof *l.texts),
                       calloc(room, sizeof *l.done), 0};
    bool *there = calloc(n, sizeof *there);
    char dest[SL_PATH_MAX];
    int rc = l.wants && l.texts && l.done && there ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++) { /* nothing comes when one of them cannot stay */
        const json_t *file = json_array_get(files, i);
        const char *path = sl_json_str(file, "path", "");
        there[i] = *only && strcmp(only, path) != 0;
        if (!there[i])
            rc = sl_path(dest, err, "%s/%s", dir, path);
        if (rc == 0 && !there[i])
            rc = check_dest(dest, sl_json_str(file, "sha256", ""), &there[i], err);
    }
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const json_t *file = json_array_get(files, i);
        if (there[i])
            continue;
        rc = sl_path(dest, err, "%s/%s", dir, sl_json_str(file, "path", ""));
        if (rc == 0)
            rc = add(&l, t, file, dest, err);
        if (rc == 0 && l.n == room)
            rc = get_listed(t, part, &l, rc, err);
    }
    rc = get_listed(t, part, &l, rc, err);
    free(there);
    free(l.done);
    free(l.texts);
    free(l.wants);
    return rc;
}

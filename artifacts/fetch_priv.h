/* Inside the fetch half of plan.h: fetch.c and fetch_local.c. */
#ifndef SL_ARTIFACTS_FETCH_PRIV_H
#define SL_ARTIFACTS_FETCH_PRIV_H
#include "artifacts/api.h"
#include "artifacts/transfer.h"
#include <jansson.h>

struct fetch {
    const char *run_dir;
    const json_t *allow_paths;
    struct sl_api *api; /* NULL: the plan names no server */
    struct sl_transfer transfer;
    struct sl_cache cache;
    json_t *inputs; /* what the checkpoint was made of, NULL until one is fetched */
};

/* One item, and what becomes known of it. */
struct item {
    const char *ref;    /* as given */
    const char *sha256; /* expected, or NULL */
    bool unpack;
    bool unpack_tarball; /* unpack if it turns out to be one */
    char dest[SL_PATH_MAX];
    const char *path;           /* relative */
    const char *name, *version; /* of an artifact; borrowed from record */
    char digest[SL_SHA256_HEX + 1];
    int64_t bytes;
};

/* Puts one fetched file where the item wants it. entries: what a tarball should hold; may be NULL. */
int sl_fetch_place(struct fetch *f, const struct item *it, const char *path, const char *dest,
                   const json_t *entries, struct sl_err *err);
/* SL_DATA: what was found is not what the item expects. */
int sl_fetch_expect(const struct item *it, const char *found, struct sl_err *err);
/* The digest that a manifest of these files would have. files: taken. */
int sl_fetch_digest(json_t *files_taken, char ret_sha256[SL_SHA256_HEX + 1], struct sl_err *err);
/* A path or file:// URL: linked, or unpacked. SL_DENIED outside of what is allowed. */
int sl_fetch_local(struct fetch *f, struct item *it, struct sl_err *err);

#endif

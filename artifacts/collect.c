/* Collection: marks what versions, pins and live manifests have, and removes the other blobs. What comes
 * into use meanwhile is held (store_priv.h: held, fresh), so nothing else has to wait. */
#include "artifacts/manifest.h"
#include "artifacts/remote.h"
#include "artifacts/store_priv.h"
#include "base/clock.h"
#include "base/json.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIGEST_BYTES (SL_SHA256_HEX / 2)

/* A set of digests, 32 bytes each. */
struct marks {
    unsigned char (*digests)[DIGEST_BYTES];
    size_t n, room;
    bool sorted;
};

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, DIGEST_BYTES);
}

static unsigned char hex_digit(char c)
{
    return (unsigned char)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static void to_bytes(const char *sha256, unsigned char ret_digest[DIGEST_BYTES])
{
    for (int i = 0; i < DIGEST_BYTES; i++)
        ret_digest[i] =
            (unsigned char)(hex_digit(sha256[2 * i]) << 4 | hex_digit(sha256[2 * i + 1]));
}

static int mark(struct marks *m, const char *sha256, struct sl_err *err)
{
    if (m->n == m->room) {
        size_t room = m->room ? 2 * m->room : 1024;
        void *bigger = realloc(m->digests, room * DIGEST_BYTES);
        if (!bigger)
            return sl_store_nomem(err);
        m->digests = bigger;
        m->room = room;
    }
    to_bytes(sha256, m->digests[m->n++]);
    m->sorted = false;
    return 0;
}

static bool marked(struct marks *m, const char *sha256)
{
    unsigned char digest[DIGEST_BYTES];
    if (!m->n)
        return false;
    if (!m->sorted)
        qsort(m->digests, m->n, DIGEST_BYTES, compare);
    m->sorted = true;
    to_bytes(sha256, digest);
    return bsearch(digest, m->digests, m->n, DIGEST_BYTES, compare);
}

/* The manifest and its files. missing_ok: it need not be there. */
static int mark_manifest(struct sl_store *store, struct marks *m, const char *sha256,
                         bool missing_ok, struct sl_err *err)
{
    json_t *manifest = NULL, *file;
    size_t i;
    struct sl_err why = SL_ERR_INIT;
    int rc = sl_store_check_sha256(sha256, err);
    if (rc)
        return sl_err_set(err, SL_DATA, "`%.80s` is no manifest's digest", sha256);
    rc = sl_store_read_manifest(store, sha256, &manifest, &why);
    if (rc == SL_NOTFOUND && missing_ok)
        return 0;
    if (rc)
        return sl_err_set(err, rc == SL_NOTFOUND ? SL_DATA : rc, "%s", why.msg);
    rc = mark(m, sha256, err);
    json_array_foreach(rc ? NULL : json_object_get(manifest, "files"), i, file) {
        const char *digest = sl_json_str(file, "sha256", "");
        rc = sl_sha256_valid(digest)
                 ? mark(m, digest, err)
                 : sl_err_set(err, SL_DATA, "manifest %s names no digest", sha256);
        if (rc)
            break;
    }
    json_decref(manifest);
    return rc;
}

struct marking {
    struct sl_store *store;
    struct marks *marks;
};

static int mark_record(void *arg, const json_t *record, struct sl_err *err)
{
    const struct marking *m = arg;
    int rc = mark_manifest(m->store, m->marks, sl_json_str(record, "manifest", ""), false, err);
    return rc ? sl_err_wrap(err, rc, "%s:%s", sl_json_str(record, "name", "?"),
                            sl_json_str(record, "version", "?"))
              : 0;
}

static int64_t age_us(const struct stat *st)
{
    return sl_now_us() - (st->st_mtim.tv_sec * INT64_C(1000000) + st->st_mtim.tv_nsec / 1000);
}

struct pins {
    struct sl_store *store;
    struct marks *marks;
    int64_t max_us; /* 0: however old */
    const char *sha256;
    int n;
};

static int mark_pin(void *arg, const char *path, const char *run, struct sl_err *err)
{
    struct pins *p = arg;
    struct stat st;
    if (p->max_us && stat(path, &st) == 0 && age_us(&st) > p->max_us)
        return sl_store_unpin(p->store, p->sha256, run, err);
    p->n++;
    return 0;
}

/* The pins of one manifest; those that are too old go. */
static int mark_pinned(void *arg, const char *path, const char *sha256, struct sl_err *err)
{
    struct pins *p = arg;
    struct sl_err gone = SL_ERR_INIT;
    if (!sl_sha256_valid(sha256))
        return 0;
    p->sha256 = sha256;
    p->n = 0;
    int rc = sl_dir_each(path, mark_pin, p, &gone);
    if (rc && rc != SL_NOTFOUND) /* the last pin went, and its folder with it */
        return sl_err_set(err, rc, "%s", gone.msg);
    return p->n ? mark_manifest(p->store, p->marks, sha256, true, err) : 0;
}

static int mark_pins(struct sl_store *store, struct marks *m, int64_t max_us, struct sl_err *err)
{
    struct pins p = {.store = store, .marks = m, .max_us = max_us};
    char dir[SL_PATH_MAX];
    int rc = sl_path(dir, err, "%s/pins", store->dir);
    return rc ? rc : sl_dir_each(dir, mark_pinned, &p, err);
}

/* ---- sweeping -------------------------------------------------------------------------------- */

struct sweep {
    struct sl_store *store;
    struct marks *marks;
    int64_t grace_us;
    bool remove; /* else only counts what would go */
    bool notes;  /* it walks over those of a store in a bucket */
    int64_t blobs, bytes, removed_blobs, removed_bytes, candidates;
};

/* The blob's file and, of a store in a bucket, the note about it, after which the object is to be deleted. */
static bool unlink_blob(struct sl_store *store, const char *sha256, const char *path)
{
    char local[SL_PATH_MAX], note[SL_PATH_MAX];
    if (!store->remote)
        return unlink(path) == 0;
    if (sl_store_blob_path(store, sha256, local, NULL) || sl_remote_path(store, sha256, note, NULL))
        return false;
    bool gone = unlink(note) == 0;
    if (gone)
        sl_remote_begin_remove(store, sha256);
    return unlink(local) == 0 || gone;
}

/* One that is here and in the bucket is looked at by its note, once. */
static bool has_note(const struct sweep *s, const char *sha256)
{
    char note[SL_PATH_MAX];
    return s->store->remote && !s->notes && sl_remote_path(s->store, sha256, note, NULL) == 0 && sl_file_exists(note);
}

static int sweep_blob(void *arg, const char *path, const char *sha256, struct sl_err *err)
{
    struct sweep *s = arg;
    struct stat st;
    bool remote = false;
    int rc = 0;
    if (!sl_sha256_valid(sha256) || has_note(s, sha256) || stat(path, &st))
        return 0;
    bool go = !marked(s->marks, sha256) && age_us(&st) >= s->grace_us;
    s->candidates += go;
    if (go && s->remove) {
        pthread_mutex_lock(&s->store->blob_mutex);
        const json_t *until = json_object_get(s->store->held, sha256);
        go = !(until && json_integer_value(until) > sl_boot_us()) &&
             !json_object_get(s->store->fresh, sha256) && stat(path, &st) == 0 &&
             age_us(&st) >= s->grace_us && unlink_blob(s->store, sha256, path);
        remote = go && s->notes;
        pthread_mutex_unlock(&s->store->blob_mutex);
        if (remote)
            rc = sl_remote_end_remove(s->store, sha256, err);
        s->removed_blobs += go;
        s->removed_bytes += go ? st.st_size : 0;
    }
    s->blobs += !go;
    s->bytes += go ? 0 : st.st_size;
    return rc; /* of an object that stays in the bucket, with nothing here that asks for it */
}

static int sweep_all(struct sweep *s, struct sl_err *err)
{
    char dir[SL_PATH_MAX];
    int rc = 0;
    s->blobs = s->bytes = 0;
    for (int i = 0; rc == 0 && i < (s->store->remote ? 512 : 256); i++) {
        s->notes = i >= 256;
        rc = sl_path(dir, err, "%s/blobs/%s/%02x", s->store->dir, s->notes ? "remote" : "sha256", i & 255);
        if (rc == 0)
            rc = sl_dir_each(dir, sweep_blob, s, err);
    }
    return rc;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Drops holds that are over. The blob mutex is held. */
static void drop_holds(struct sl_store *store)
{
    const char *sha256;
    json_t *until;
    void *next;
    json_object_foreach_safe(store->held, next, sha256, until)
        if (json_integer_value(until) <= sl_boot_us())
            json_object_del(store->held, sha256);
}

static int begin(struct sl_store *store, struct sl_err *err)
{
    pthread_mutex_lock(&store->blob_mutex);
    bool busy = store->collecting;
    store->collecting = true;
    if (!busy)
        drop_holds(store);
    pthread_mutex_unlock(&store->blob_mutex);
    return busy ? sl_err_set(err, SL_CONFLICT, "another collection of %s is under way", store->dir)
                : 0;
}

static void end(struct sl_store *store)
{
    pthread_mutex_lock(&store->blob_mutex);
    store->collecting = false;
    json_object_clear(store->fresh);
    pthread_mutex_unlock(&store->blob_mutex);
}

/* What only others know to be in use. */
static int mark_live(struct sl_store *store, struct marks *m, const struct sl_collect *how,
                     struct sl_err *err)
{
    json_t *live = json_array(), *digest;
    size_t i;
    int rc = live ? how->live(how->arg, live, err) : sl_store_nomem(err);
    json_array_foreach(rc ? NULL : live, i, digest) {
        rc = mark_manifest(store, m, json_string_value(digest), true, err);
        if (rc)
            break;
    }
    json_decref(live);
    return rc;
}

int sl_store_collect(struct sl_store *store, const struct sl_collect *how, json_t **ret_report,
                     struct sl_err *err)
{
    struct marks marks = {.n = 0};
    struct marking marking = {store, &marks};
    int rc = begin(store, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    if (store->journal_pending)
        rc = sl_store_replay(store, err);
    pthread_mutex_unlock(&store->mutex);
    /* Pins first: one that goes meanwhile has left a version behind. */
    if (rc == 0)
        rc = mark_pins(store, &marks, how->pin_max_us, err);
    if (rc == 0)
        rc = sl_store_each(store, mark_record, &marking, err);
    struct sweep s = {.store = store, .marks = &marks, .grace_us = how->grace_us};
    if (rc == 0 && how->live)
        rc = sweep_all(&s, err);
    if (rc == 0 && how->live && s.candidates)
        rc = mark_live(store, &marks, how, err);
    s.remove = true;
    if (rc == 0)
        rc = sweep_all(&s, err);
    if (rc == 0)
        rc = sl_store_clean_uploads(store, how->grace_us, err);
    end(store);
    free(marks.digests);
    if (rc)
        return sl_err_wrap(err, rc, "collecting what is not used");
    json_t *report = json_pack("{s:I, s:I, s:I, s:I}", "blobs", (json_int_t)s.blobs, "bytes",
                               (json_int_t)s.bytes, "removed_blobs", (json_int_t)s.removed_blobs,
                               "removed_bytes", (json_int_t)s.removed_bytes);
    if (!report)
        return sl_store_nomem(err);
    *ret_report = report;
    return 0;
}

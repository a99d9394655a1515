#include "artifacts/target.h"
#include "base/file.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHAT_MAX (SL_ENTRY_PATH_MAX + 300)

bool sl_target_knows(const char *ref)
{
    return strncmp(ref, "s3://", 5) == 0 || strncmp(ref, "gs://", 5) == 0;
}

/* It may look its keys up anew. */
static int on_sign(void *arg, const char *method, const char *url, const char *sha256, struct curl_slist **headers,
                   struct sl_err *err)
{
    struct sl_target *t = arg;
    pthread_mutex_lock(&t->mutex);
    int rc = t->own.sign(t->own.arg, method, url, sha256, headers, err);
    pthread_mutex_unlock(&t->mutex);
    return rc;
}

int sl_target_open(const char *ref, const struct sl_watch *watch, struct sl_pace *pace,
                   struct sl_target **ret_target, struct sl_err *err)
{
    if (!sl_target_knows(ref))
        return sl_err_set(err, SL_SPEC, "`%.200s`: files can be sent to s3:// and gs:// only", ref);
    struct sl_target *t = calloc(1, sizeof *t);
    if (!t)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    if (watch)
        t->watch = *watch;
    t->pace = pace;
    t->scheme_name = ref[0] == 's' ? "s3" : "gs";
    int rc = sl_bucket_ref_parse(ref, &t->ref, err);
    pthread_mutex_init(&t->mutex, NULL);
    if (rc == 0)
        rc = ref[0] == 's' ? sl_target_s3(t, err) : sl_target_gs(t, err);
    t->own = t->signer;
    t->signer = (struct sl_signer){.arg = t, .sign = on_sign, .follow = t->own.follow};
    if (rc) {
        sl_target_close(t);
        return rc;
    }
    *ret_target = t;
    return 0;
}

void sl_target_close(struct sl_target *t)
{
    if (!t)
        return;
    if (t->free_state)
        t->free_state(t->state);
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

bool sl_target_is_folder(const struct sl_target *t)
{
    return t->ref.folder;
}

const struct sl_signer *sl_target_signer(const struct sl_target *t)
{
    return &t->signer;
}

/* The object's key. */
static int key_of(const struct sl_target *t, const char *name, char ret_key[SL_ENTRY_PATH_MAX + 2],
                  struct sl_err *err)
{
    if (!t->ref.folder && !*name) {
        memcpy(ret_key, t->ref.key, strlen(t->ref.key) + 1);
        return 0;
    }
    if (!t->ref.folder)
        return sl_err_set(err, SL_SPEC,
                          "%s://%s/%s names one object, but there are more files: write a slash behind it",
                          t->scheme_name, t->ref.bucket, t->ref.key);
    if (!sl_entry_path_valid(name))
        return sl_err_set(err, SL_SPEC, "`%.200s` cannot be the name of an object", name);
    int n = snprintf(ret_key, SL_ENTRY_PATH_MAX + 2, "%s%s", t->ref.key, name);
    if (n > SL_ENTRY_PATH_MAX)
        return sl_err_set(err, SL_SPEC, "%.200s%.100s: an object's name may have %d bytes here",
                          t->ref.key, name, SL_ENTRY_PATH_MAX);
    return 0;
}

/* hand NULL: the calling thread alone, with the target's own watch. */
static int send_one(struct sl_target *t, const struct sl_target_file *f, bool large,
                    const struct sl_crew_hand *hand, struct sl_err *err)
{
    char key[SL_ENTRY_PATH_MAX + 2], what[WHAT_MAX];
    struct stat st;
    int rc = key_of(t, f->name, key, err);
    if (rc)
        return rc;
    snprintf(what, sizeof what, "%s://%s/%s", t->scheme_name, t->ref.bucket, key);
    int fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) {
        rc = sl_err_errno(err, "opening %s", f->path);
    } else if (large == (st.st_size > SL_PART_BYTES)) {
        const struct sl_sending s = {t, what, key, f->sha256, fd, st.st_size};
        rc = large ? t->scheme->put_large(&s, err) : t->scheme->put_small(&s, hand, err);
        if (rc)
            sl_err_wrap(err, rc, "sending %s to %s", f->path, what);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

struct batch {
    struct sl_target *t;
    const struct sl_target_file *files;
};

static int send_small(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err)
{
    const struct batch *b = arg;
    return send_one(b->t, &b->files[i], false, hand, err);
}

int sl_target_put(struct sl_target *t, const struct sl_target_file *files, size_t n, struct sl_err *err)
{
    struct batch b = {t, files};
    int rc = sl_crew_run(&t->watch, &t->signer, n, SL_TARGET_HANDS, send_small, &b, err);
    for (size_t i = 0; rc == 0 && i < n; i++) /* the large ones, whose parts go side by side */
        rc = send_one(t, &files[i], true, NULL, err);
    return rc;
}

int sl_target_url(struct sl_target *t, const char *name, struct sl_buf *url, struct sl_err *err)
{
    char key[SL_ENTRY_PATH_MAX + 2];
    int rc = key_of(t, name, key, err);
    return rc ? rc : t->scheme->url(t, key, url, err);
}

int sl_target_find(struct sl_target *t, const char *name, const char *sha256, int64_t bytes,
                   struct sl_err *err)
{
    char key[SL_ENTRY_PATH_MAX + 2], found[SL_SHA256_HEX + 1] = "";
    int64_t there = -1;
    int rc = key_of(t, name, key, err);
    if (rc == 0)
        rc = t->scheme->stat(t, key, found, &there, err);
    if (rc == 0 && (there != bytes || strcmp(found, sha256) != 0))
        rc = sl_err_set(err, SL_NOTFOUND, "%s://%s/%s has other content", t->scheme_name, t->ref.bucket, key);
    return rc;
}

int sl_target_remove(struct sl_target *t, const char *name, struct sl_err *err)
{
    struct sl_buf url;
    struct sl_answer answer;
    sl_buf_init(&url, SL_TARGET_URL_MAX);
    int rc = sl_target_url(t, name, &url, err);
    if (rc == 0) {
        const struct sl_ask ask = {.method = "DELETE", .url = url.p, .signer = &t->signer};
        rc = sl_ask(&ask, &t->watch, &answer, err);
    }
    if (rc == 0) {
        rc = sl_answer_check(&answer, "removing it", url.p, err);
        sl_answer_release(&answer);
        if (rc == SL_NOTFOUND) {
            sl_err_clear(err);
            rc = 0;
        }
    }
    sl_buf_release(&url);
    return rc;
}

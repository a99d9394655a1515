#include "server/sessions.h"
#include "base/file.h"
#include "base/json.h"
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (8u << 20)

struct sl_sessions {
    char path[SL_PATH_MAX];
    pthread_mutex_t writing;
    pthread_rwlock_t lock; /* of the pointer below, which a writer swaps after it wrote the file */
    json_t *all;           /* {sha256: {"token_sha256", "created_ms", "expires_ms"}} */
};

int sl_secret_hex(char *ret_hex, int bytes, struct sl_err *err)
{
    unsigned char raw[32];
    if (bytes > (int)sizeof raw || RAND_bytes(raw, bytes) != 1)
        return sl_err_set(err, SL_IO, "the system gave no random bytes");
    for (int i = 0; i < bytes; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

int sl_json_read_or(const char *path, size_t max_bytes, json_t *otherwise_stolen, json_t **ret,
                    struct sl_err *err)
{
    if (!sl_file_exists(path)) {
        if (!otherwise_stolen)
            return sl_err_set(err, SL_NOMEM, "out of memory");
        *ret = otherwise_stolen;
        return 0;
    }
    json_decref(otherwise_stolen);
    return sl_json_read(path, max_bytes, ret, err);
}

int sl_sessions_open(const char *data_dir, struct sl_sessions **ret_sessions, struct sl_err *err)
{
    struct sl_sessions *s = calloc(1, sizeof *s);
    if (!s)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    pthread_mutex_init(&s->writing, NULL);
    pthread_rwlock_init(&s->lock, NULL);
    int rc = sl_path(s->path, err, "%s/auth/sessions.json", data_dir);
    if (rc == 0)
        rc = sl_json_read_or(s->path, FILE_MAX, json_object(), &s->all, err);
    if (rc == 0 && !json_is_object(s->all))
        rc = sl_err_set(err, SL_DATA, "%s is not as this version writes it", s->path);
    if (rc) {
        sl_sessions_close(s);
        return rc;
    }
    *ret_sessions = s;
    return 0;
}

void sl_sessions_close(struct sl_sessions *s)
{
    if (!s)
        return;
    pthread_mutex_destroy(&s->writing);
    pthread_rwlock_destroy(&s->lock);
    json_decref(s->all);
    free(s);
}

bool sl_sessions_find(struct sl_sessions *s, const char *cookie_sha256, int64_t now_ms,
                      char ret_token_sha256[SL_SHA256_HEX + 1])
{
    pthread_rwlock_rdlock(&s->lock);
    const json_t *session = json_object_get(s->all, cookie_sha256);
    bool ok = session && now_ms < sl_json_int(session, "expires_ms", 0);
    if (ok)
        snprintf(ret_token_sha256, SL_SHA256_HEX + 1, "%s",
                 sl_json_str(session, "token_sha256", ""));
    pthread_rwlock_unlock(&s->lock);
    return ok;
}

/* A copy to change; `writing` is held until commit. */
static json_t *begin(struct sl_sessions *s)
{
    pthread_mutex_lock(&s->writing);
    return json_deep_copy(s->all); /* writers alone replace it: reading needs no lock */
}

static int commit(struct sl_sessions *s, json_t *changed, int rc, struct sl_err *err)
{
    if (rc == 0)
        rc = sl_json_write(s->path, changed, err);
    if (rc == 0) {
        json_t *old = s->all;
        pthread_rwlock_wrlock(&s->lock);
        s->all = changed;
        pthread_rwlock_unlock(&s->lock);
        changed = old;
    }
    json_decref(changed);
    pthread_mutex_unlock(&s->writing);
    return rc;
}

/* Drops those that have expired, and the oldest while there are `most`: of one token, or of all. */
static void make_room(json_t *sessions, const char *token_sha256, size_t most, int64_t now_ms)
{
    for (;;) {
        const char *key, *oldest = NULL;
        json_t *session;
        void *next;
        int64_t oldest_ms = INT64_MAX;
        size_t n = 0;
        json_object_foreach_safe(sessions, next, key, session)
        {
            int64_t created_ms = sl_json_int(session, "created_ms", 0);
            if (sl_json_int(session, "expires_ms", 0) <= now_ms) {
                json_object_del(sessions, key);
                continue;
            }
            if (token_sha256 && strcmp(sl_json_str(session, "token_sha256", ""), token_sha256) != 0)
                continue;
            n++;
            if (created_ms < oldest_ms) {
                oldest_ms = created_ms;
                oldest = key;
            }
        }
        if (n < most || !oldest)
            return;
        json_object_del(sessions, oldest);
    }
}

int sl_sessions_begin(struct sl_sessions *s, const char *token_sha256, int64_t now_ms,
                      int64_t expires_ms, char ret_cookie[SL_SESSION_TEXT + 1], struct sl_err *err)
{
    char cookie[SL_SESSION_TEXT + 1], sha256[SL_SHA256_HEX + 1];
    int rc = sl_secret_hex(cookie, SL_SESSION_TEXT / 2, err);
    if (rc == 0)
        rc = sl_sha256_data(cookie, SL_SESSION_TEXT, sha256, err);
    if (rc)
        return rc;
    json_t *changed = begin(s);
    make_room(changed, token_sha256, SL_SESSIONS_OF_A_TOKEN, now_ms);
    make_room(changed, NULL, SL_SESSIONS_MAX, now_ms);
    if (json_object_set_new(changed, sha256,
                            json_pack("{s:s, s:I, s:I}", "token_sha256", token_sha256, "created_ms",
                                      (json_int_t)now_ms, "expires_ms", (json_int_t)expires_ms)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    rc = commit(s, changed, rc, err);
    if (rc == 0)
        memcpy(ret_cookie, cookie, sizeof cookie);
    return rc;
}

int sl_sessions_end(struct sl_sessions *s, const char *cookie_sha256, struct sl_err *err)
{
    json_t *changed = begin(s);
    json_object_del(changed, cookie_sha256);
    return commit(s, changed, 0, err);
}

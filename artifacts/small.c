#include "artifacts/small.h"
#include "artifacts/crew.h"
#include "artifacts/job.h"
#include "artifacts/store.h"
#include "artifacts/web.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES (SL_SHA256_HEX + 32)
#define URL_BYTES (SL_BLOBS_AT_ONCE * (SL_SHA256_HEX + 1) + 512)

struct small {
    const struct sl_transfer *t;
    const struct sl_cache *cache;
    const struct sl_want *wants;
    struct sl_got *gots; /* or NULL */
    bool *done;
    bool *came;     /* it is in its group's folder */
    size_t *order;  /* which of wants are to come, */
    size_t *groups; /* and where in order each group begins; one more for the end */
    atomic_int failures;
    pthread_mutex_t placing; /* renames between folders wait for each other in the kernel, and spin meanwhile */
};

/* A group on its way. */
struct group {
    struct sl_job job; /* the first member: on_body gets it */
    struct small *s;
    struct sl_cache_batch batch;
    const size_t *order; /* of the request under way */
    size_t n, next;      /* next: whose line or bytes come next */
    bool in_bytes;       /* of next; else in its line */
    char line[LINE_MAX_BYTES];
    size_t line_len, got;
    char bytes[SL_SMALL_BYTES];
};

static const struct sl_want *coming(const struct group *g)
{
    return &g->s->wants[g->order[g->next]];
}

/* All bytes of the next file are there: keeps them if they are right. */
static int keep(struct group *g, struct sl_err *err)
{
    char found[SL_SHA256_HEX + 1];
    const struct sl_want *want = coming(g);
    size_t i = g->order[g->next];
    int rc = sl_sha256_data(g->bytes, g->got, found, err);
    if (rc == 0 && strcmp(found, want->sha256) == 0 &&
        sl_cache_batch_write(&g->batch, found, g->bytes, g->got, want->dest != NULL, NULL) == 0) {
        g->s->came[i] = true;
        sl_watch_progress(&g->job.t->watch, want->bytes);
    }
    g->in_bytes = false;
    g->next++;
    return rc;
}

/* A whole line is there. It says how many bytes come, or that none do. */
static int take_line(struct group *g, struct sl_err *err)
{
    char right[LINE_MAX_BYTES];
    const struct sl_want *want = coming(g);
    g->line[g->line_len] = 0;
    g->line_len = 0;
    snprintf(right, sizeof right, "%s -", want->sha256);
    if (strcmp(g->line, right) == 0) {
        g->next++;
        return 0;
    }
    snprintf(right, sizeof right, "%s %" PRId64, want->sha256, want->bytes);
    if (strcmp(g->line, right) != 0)
        return sl_err_set(err, SL_DATA, "the server sent another file than was asked for");
    g->in_bytes = true;
    g->got = 0;
    return want->bytes == 0 ? keep(g, err) : 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct group *g = arg; /* the job is its first member */
    size_t len = size * n;
    long status = 0;
    int rc = 0;
    curl_easy_getinfo(g->job.curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return len;
    for (size_t used = 0, part; rc == 0 && used < len; used += part) {
        part = len - used;
        if (g->next == g->n) {
            rc = sl_err_set(&g->job.err, SL_DATA, "the server sent more than was asked for");
        } else if (g->in_bytes) {
            size_t left = (size_t)coming(g)->bytes - g->got;
            part = part < left ? part : left;
            memcpy(g->bytes + g->got, data + used, part);
            g->got += part;
            if (part == left)
                rc = keep(g, &g->job.err);
        } else {
            const char *end = memchr(data + used, '\n', part);
            size_t text = end ? (size_t)(end - data) - used : part;
            if (g->line_len + text >= sizeof g->line)
                rc = sl_err_set(&g->job.err, SL_DATA, "the server sent no list of files");
            else
                memcpy(g->line + g->line_len, data + used, text);
            g->line_len += text;
            part = text + (end != NULL);
            if (rc == 0 && end)
                rc = take_line(g, &g->job.err);
        }
    }
    sl_pace_take(g->job.t->pace, (int64_t)len, &g->job.t->watch);
    return rc ? 0 : len;
}

/* One request for n of the group's files. */
static int request(struct group *g, const struct sl_transfer *t, const size_t *order, size_t n,
                   struct sl_err *err)
{
    struct small *s = g->s;
    char url[URL_BYTES];
    int len = snprintf(url, sizeof url, "%s/api/v1/blobs?sha256=", t->server);
    for (size_t i = 0; i < n && len < (int)sizeof url; i++)
        len += snprintf(url + len, sizeof url - (size_t)len, "%s%s", i ? "," : "",
                        s->wants[order[i]].sha256);
    if (len >= (int)sizeof url) /* a server with a very long name */
        return 0;
    int rc = sl_job_init(&g->job, t, s->wants[order[0]].what, url, on_body, err);
    if (rc)
        return rc;
    g->order = order;
    g->n = n;
    g->next = g->line_len = 0;
    g->in_bytes = false;
    sl_web_reset(g->job.curl);
    CURLcode code = sl_job_perform(&g->job, NULL);
    if (g->job.err.code == SL_CANCELLED || g->job.err.code == SL_NOMEM)
        rc = sl_err_set(err, g->job.err.code, "%s", g->job.err.msg);
    else if (g->job.status == 404 || g->job.status == 405) /* a server of an older build */
        atomic_store(&s->failures, SL_SMALL_FAILURES);
    else if (code != CURLE_OK || g->job.status != 200 || g->next < n)
        atomic_fetch_add(&s->failures, 1);
    sl_job_release(&g->job);
    return rc;
}

/* A file is in its place. */
static void note(struct small *s, size_t i, const char *path, bool cached)
{
    s->done[i] = true;
    if (!s->gots)
        return;
    struct sl_got *got = &s->gots[i];
    *got = (struct sl_got){.bytes = s->wants[i].bytes, .cached = cached};
    memcpy(got->sha256, s->wants[i].sha256, SL_SHA256_HEX);
    memcpy(got->path, path, strlen(path) + 1);
}

/* made: the folder that was made last, so that files beside each other ask once. */
static int make_parent(const char *dest, char made[SL_PATH_MAX])
{
    char parent[SL_PATH_MAX];
    const char *slash = strrchr(dest, '/');
    int rc = sl_path(parent, NULL, "%.*s", slash ? (int)(slash - dest) : 1, slash ? dest : ".");
    if (rc || strcmp(parent, made) == 0 || !parent[0])
        return rc;
    rc = sl_mkdirs(parent, NULL);
    if (rc == 0)
        memcpy(made, parent, strlen(parent) + 1);
    return rc;
}

static int get_group(void *arg, const struct sl_crew_hand *hand, size_t i, struct sl_err *err)
{
    struct small *s = arg;
    const size_t *order = s->order + s->groups[i];
    size_t n = s->groups[i + 1] - s->groups[i];
    struct sl_transfer t = *s->t;
    struct group *g = malloc(sizeof *g);
    t.watch = hand->watch;
    t.signer = NULL;
    t.curl = hand->curl;
    if (!g)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    g->s = s;
    if (atomic_load(&s->failures) >= SL_SMALL_FAILURES ||
        sl_cache_batch_begin(s->cache, &g->batch, NULL)) {
        free(g);
        return 0;
    }
    int rc = 0;
    for (size_t k = 0; rc == 0 && k < n && atomic_load(&s->failures) < SL_SMALL_FAILURES;
         k += SL_BLOBS_AT_ONCE)
        rc = request(g, &t, order + k, n - k < SL_BLOBS_AT_ONCE ? n - k : SL_BLOBS_AT_ONCE, err);
    bool durable = rc == 0 && sl_cache_batch_sync(&g->batch, NULL) == 0;
    char made[SL_PATH_MAX] = "", path[SL_PATH_MAX];
    pthread_mutex_lock(&s->placing);
    for (size_t k = 0; k < n; k++) {
        const struct sl_want *want = &s->wants[order[k]];
        if (!s->came[order[k]])
            continue;
        bool placed = durable && (!want->dest || make_parent(want->dest, made) == 0) &&
                      sl_cache_batch_place(&g->batch, want->sha256, want->dest, path, NULL) == 0;
        if (placed)
            note(s, order[k], path, false);
        else /* it is counted when it comes alone */
            sl_watch_progress(&t.watch, -want->bytes);
    }
    pthread_mutex_unlock(&s->placing);
    sl_cache_batch_end(&g->batch);
    free(g);
    return rc;
}

/* Whether it may come this way. */
static bool is_small(const struct sl_transfer *t, const struct sl_want *want)
{
    static const char path[] = "/api/v1/blobs/";
    size_t len = t->server ? strlen(t->server) : 0;
    return t->server && want->sha256 && sl_sha256_valid(want->sha256) && want->bytes >= 0 &&
           want->bytes <= SL_SMALL_BYTES && strncmp(want->url, t->server, len) == 0 &&
           strncmp(want->url + len, path, sizeof path - 1) == 0 &&
           strcmp(want->url + len + sizeof path - 1, want->sha256) == 0;
}

/* Those that the cache has are done; the others are put into groups. Returns the groups' number. */
static size_t sort_out(struct small *s, size_t n)
{
    size_t wanted = 0, groups = 0;
    int64_t bytes = 0;
    int lock = sl_cache_lock(s->cache->dir, false);
    for (size_t i = 0; i < n; i++) {
        const struct sl_want *want = &s->wants[i];
        char path[SL_PATH_MAX];
        int64_t have;
        if (!is_small(s->t, want))
            continue;
        if (sl_cache_has(s->cache, want->sha256, path, &have)) {
            if (s->gots) {
                note(s, i, path, true);
                sl_watch_progress(&s->t->watch, have);
            }
            continue;
        }
        if (wanted == 0 || wanted - s->groups[groups - 1] == SL_SMALL_GROUP_FILES ||
            bytes + want->bytes > SL_SMALL_GROUP_BYTES) {
            s->groups[groups++] = wanted;
            bytes = 0;
        }
        bytes += want->bytes;
        s->order[wanted++] = i;
    }
    if (lock >= 0)
        close(lock);
    s->groups[groups] = wanted;
    return wanted < SL_SMALL_MIN ? 0 : groups;
}

int sl_small_many(const struct sl_transfer *t, const struct sl_cache *cache, const struct sl_want *wants, size_t n,
                  struct sl_got *gots, bool *done, struct sl_err *err)
{
    struct small s = {.t = t, .cache = cache, .wants = wants, .gots = gots, .done = done,
                      .order = calloc(n + 1, sizeof *s.order), .groups = calloc(n + 1, sizeof *s.groups),
                      .came = calloc(n, sizeof *s.came)};
    int rc = s.order && s.groups && s.came ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    size_t groups = rc ? 0 : sort_out(&s, n);
    pthread_mutex_init(&s.placing, NULL);
    if (groups)
        rc = sl_crew_run(&t->watch, NULL, groups, SL_SMALL_GROUPS, get_group, &s, err);
    pthread_mutex_destroy(&s.placing);
    free(s.order);
    free(s.groups);
    free(s.came);
    return rc;
}

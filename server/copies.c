#include "server/copies.h"
#include "artifacts/source.h"
#include "artifacts/target.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "server/scope.h"
#include "server/ticker.h"
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define JOB_BYTES_MAX (64u << 10)
#define PAUSE_FIRST_S 5
#define FD_PATH_MAX 40

struct copies {
    struct sl_server *server;
    struct sl_ticker *ticker;
    pthread_mutex_t mutex;
    json_t *tries; /* file's name -> {"tries", "error", "next_us"} */
};

static int copies_dir(const struct sl_serve_config *config, char ret_path[SL_PATH_MAX], struct sl_err *err)
{
    return sl_path(ret_path, err, "%s/copies", config->data_dir);
}

int sl_copies_check(const struct sl_serve_config *config, const char *to, struct sl_err *err)
{
    struct sl_bucket_ref ref;
    size_t len = strlen(to);
    int rc = sl_target_knows(to) && len <= SL_COPY_TO_MAX && to[len - 1] == '/' ? sl_bucket_ref_parse(to, &ref, err) : SL_SPEC;

    if (rc)
        return sl_err_set(err, SL_SPEC, "`%.200s` is not a folder of a bucket: write s3://BUCKET/PREFIX/ or gs://BUCKET/PREFIX/", to);
    for (int i = 0; i < config->n_copy_to; i++)
        if (strncmp(to, config->copy_to[i], strlen(config->copy_to[i])) == 0)
            return 0;
    return sl_err_set(err, SL_DENIED, "this server copies nothing to %s: its --copy-to names %s", to,
                      config->n_copy_to ? "other folders" : "none");
}

int sl_copies_add(const struct sl_serve_config *config, const char *run, const char *output, const json_t *record, const char *to,
                  struct sl_err *err)
{
    char dir[SL_PATH_MAX], path[SL_PATH_MAX], now[32];
    int rc = copies_dir(config, dir, err);

    if (!rc)
        rc = sl_path(path, err, "%s/%s.%s.json", dir, run, output);
    if (rc || sl_file_exists(path))
        return rc;
    sl_format_time(sl_now_us(), now);
    json_t *job = json_pack("{s:s, s:s, s:O, s:O, s:s, s:O*, s:s, s:I}", "run", run, "output", output, "name",
                            json_object_get(record, "name"), "version", json_object_get(record, "version"), "to", to, "project",
                            json_object_get(record, "project"), "created", now, "created_ms", (json_int_t)(sl_now_us() / 1000));
    rc = job ? sl_json_write(path, job, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(job);
    return rc;
}

/* ---- copying --------------------------------------------------------------------------------- */

static bool stopping(void *arg)
{
    const struct copies *c = arg;

    return sl_http_is_stopping(c->server->http);
}

static int put_fd(struct sl_target *target, int fd, const char *name, const char *sha256, int64_t bytes, struct sl_err *err)
{
    char path[FD_PATH_MAX];
    struct sl_err why = SL_ERR_INIT;
    int rc = sl_target_find(target, name, sha256, bytes, &why);

    if (rc != SL_NOTFOUND)
        return rc ? sl_err_set(err, rc, "%s", why.msg) : 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const struct sl_target_file file = {path, name, sha256};
    return sl_target_put(target, &file, 1, err);
}

static int put_file(struct copies *c, struct sl_target *target, const char *folder, const json_t *file, struct sl_err *err)
{
    const char *sha256 = sl_json_str(file, "sha256", "");
    char name[SL_ENTRY_PATH_MAX + 2 * SL_NAME_MAX];
    int64_t bytes;
    int fd = -1, rc = sl_blob_open(c->server->store, sha256, &fd, &bytes, err);

    if (rc)
        return rc;
    snprintf(name, sizeof name, "%s/%s", folder, sl_json_str(file, "path", ""));
    rc = put_fd(target, fd, name, sha256, bytes, err);
    close(fd);
    return rc;
}

/* The record, without what changes later. */
static int put_record(struct sl_target *target, const char *folder, const json_t *record, struct sl_err *err)
{
    char name[2 * SL_NAME_MAX + 8], sha256[SL_SHA256_HEX + 1];
    json_t *fixed = json_copy((json_t *)(uintptr_t)record);
    char *text;
    int fd = memfd_create("record", MFD_CLOEXEC), rc;

    json_object_del(fixed, "aliases");
    text = sl_json_dump(fixed);
    json_decref(fixed);
    rc = text ? sl_sha256_data(text, strlen(text), sha256, err) : sl_err_set(err, SL_NOMEM, "out of memory");
    if (!rc && fd < 0)
        rc = sl_err_errno(err, "memfd_create");
    if (!rc)
        rc = sl_write_all(fd, text, strlen(text), err);
    snprintf(name, sizeof name, "%s.json", folder);
    if (!rc)
        rc = put_fd(target, fd, name, sha256, (int64_t)strlen(text), err);
    if (fd >= 0)
        close(fd);
    free(text);
    return rc;
}

static int copy(struct copies *c, const json_t *job, struct sl_err *err)
{
    const struct sl_watch watch = {.arg = c, .stop = stopping};
    const char *name = sl_json_str(job, "name", ""), *version = sl_json_str(job, "version", ""), *to = sl_json_str(job, "to", "");
    char folder[2 * SL_NAME_MAX + 2];
    struct sl_target *target = NULL;
    json_t *record = NULL, *file;
    size_t i;
    int rc = sl_copies_check(c->server->config, to, err);

    if (!rc)
        rc = sl_store_resolve(c->server->store, name, version, &record, err);
    if (!rc)
        rc = sl_target_open(to, &watch, NULL, &target, err);
    snprintf(folder, sizeof folder, "%s/%s", name, version);
    json_array_foreach(json_object_get(record, "files"), i, file)
        if (!rc)
            rc = put_file(c, target, folder, file, err);
    if (!rc)
        rc = put_record(target, folder, record, err);
    sl_target_close(target);
    json_decref(record);
    return rc;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static bool is_due(struct copies *c, const char *file)
{
    pthread_mutex_lock(&c->mutex);
    bool due = sl_json_int(json_object_get(c->tries, file), "next_us", 0) <= sl_boot_us();
    pthread_mutex_unlock(&c->mutex);
    return due;
}

static void note(struct copies *c, const char *file, const char *error)
{
    pthread_mutex_lock(&c->mutex);
    int64_t tries = sl_json_int(json_object_get(c->tries, file), "tries", 0) + 1, pause_s = PAUSE_FIRST_S;
    for (int64_t i = 1; i < tries && pause_s < SL_COPY_PAUSE_MAX_S; i++)
        pause_s *= 2;
    if (pause_s > SL_COPY_PAUSE_MAX_S)
        pause_s = SL_COPY_PAUSE_MAX_S;
    if (error)
        json_object_set_new(c->tries, file, json_pack("{s:I, s:s, s:I}", "tries", (json_int_t)tries, "error", error, "next_us",
                                                      (json_int_t)sl_boot_us() + (json_int_t)pause_s * 1000000));
    else
        json_object_del(c->tries, file);
    pthread_mutex_unlock(&c->mutex);
}

static void do_one(struct copies *c, const char *path, const char *file)
{
    struct sl_err err = SL_ERR_INIT;
    json_t *job = NULL;
    int rc = sl_json_read(path, JOB_BYTES_MAX, &job, &err);
    const char *run = sl_json_str(job, "run", NULL), *name = sl_json_str(job, "name", ""), *version = sl_json_str(job, "version", "");

    if (!rc && sl_json_bool(job, "failed", false)) {
        json_decref(job);
        return;
    }
    if (!rc)
        rc = copy(c, job, &err);
    if (!rc) {
        sl_log(SL_INFO, run, "%s:%s is copied to %s", name, version, sl_json_str(job, "to", ""));
        unlink(path);
        note(c, file, NULL);
    } else if (!stopping(c)) {
        bool over = sl_now_us() / 1000 - sl_json_int(job, "created_ms", 0) > SL_COPY_DAYS * 86400000ll;
        sl_log(over ? SL_ERROR : SL_WARN, run, "copying %s:%s to %s%s: %s", name, version, sl_json_str(job, "to", ""),
               over ? " is given up" : "", err.msg);
        note(c, file, err.msg);
        if (over && job && !json_object_set_new(job, "failed", json_true()) && !json_object_set_new(job, "error", json_string(err.msg)))
            sl_json_write(path, job, NULL);
    }
    json_decref(job);
}

static void look(void *arg)
{
    struct copies *c = arg;
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    struct dirent **entries;
    int n = copies_dir(c->server->config, dir, NULL) ? -1 : scandir(dir, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        size_t len = strlen(entries[i]->d_name);
        if (len > 5 && strcmp(entries[i]->d_name + len - 5, ".json") == 0 && !stopping(c) && is_due(c, entries[i]->d_name) &&
            !sl_path(path, NULL, "%s/%s", dir, entries[i]->d_name))
            do_one(c, path, entries[i]->d_name);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
}

/* ---- the part -------------------------------------------------------------------------------- */

static void list_copies(struct sl_http_req *req, void *arg)
{
    struct copies *c = arg;
    char dir[SL_PATH_MAX], path[SL_PATH_MAX];
    json_t *list = json_array();
    struct dirent **entries;
    struct sl_err err = SL_ERR_INIT;
    int rc = copies_dir(c->server->config, dir, &err), n = rc ? -1 : scandir(dir, &entries, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        size_t len = strlen(entries[i]->d_name);
        json_t *job = NULL;
        if (len > 5 && strcmp(entries[i]->d_name + len - 5, ".json") == 0 && !sl_path(path, NULL, "%s/%s", dir, entries[i]->d_name) &&
            !sl_json_read(path, JOB_BYTES_MAX, &job, NULL) && sl_http_sees(req, sl_json_str(job, "project", ""))) {
            pthread_mutex_lock(&c->mutex);
            const json_t *tries = json_object_get(c->tries, entries[i]->d_name);
            json_object_set_new(job, "tries", json_integer(sl_json_int(tries, "tries", 0)));
            if (tries)
                json_object_set(job, "error", json_object_get(tries, "error"));
            pthread_mutex_unlock(&c->mutex);
            json_object_del(job, "created_ms");
            json_array_append(list, job);
        }
        json_decref(job);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    sl_http_reply_json(req, 200, json_pack("{s:o}", "copies", list));
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/copies", .scope = SL_SCOPE_HANDLER, .handle = list_copies},
};

int sl_copies_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    const struct sl_serve_config *config = server->config;
    struct copies *c = calloc(1, sizeof *c);
    char dir[SL_PATH_MAX];
    int rc = c ? copies_dir(config, dir, err) : sl_err_set(err, SL_NOMEM, "out of memory");

    for (int i = 0; !rc && i < config->n_copy_to; i++)
        rc = sl_copies_check(config, config->copy_to[i], err);
    if (!rc)
        rc = sl_mkdirs(dir, err);
    if (!rc)
        rc = sl_dir_sync(config->data_dir, err);
    if (!rc) {
        c->server = server;
        c->tries = json_object();
        pthread_mutex_init(&c->mutex, NULL);
        rc = sl_http_add(server->http, routes, sizeof routes / sizeof *routes, c, err);
        if (!rc)
            rc = sl_ticker_start(look, c, SL_COPY_EVERY_S * INT64_C(1000000), &c->ticker, err);
        if (rc)
            sl_copies_part_stop(c);
        else
            *ret_state = c;
        return rc;
    }
    free(c);
    return rc;
}

void sl_copies_part_stop(void *state)
{
    struct copies *c = state;

    sl_ticker_stop(c->ticker);
    json_decref(c->tries);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

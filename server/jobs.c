#include "server/jobs.h"
#include "artifacts/names.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sl_jobs {
    char dir[SL_PATH_MAX];
    pthread_mutex_t mutex;
};

int sl_jobs_open(const char *data_dir, struct sl_jobs **ret_jobs, struct sl_err *err)
{
    struct sl_jobs *jobs = calloc(1, sizeof *jobs);
    int rc = jobs ? sl_path(jobs->dir, err, "%s/jobs", data_dir)
                  : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc)
        rc = sl_mkdirs(jobs->dir, err);
    if (!rc)
        rc = sl_dir_sync(data_dir, err);
    if (rc) {
        free(jobs);
        return rc;
    }
    pthread_mutex_init(&jobs->mutex, NULL);
    *ret_jobs = jobs;
    return 0;
}

void sl_jobs_close(struct sl_jobs *jobs)
{
    if (!jobs)
        return;
    pthread_mutex_destroy(&jobs->mutex);
    free(jobs);
}

static int check_name(const char *name, struct sl_err *err)
{
    if (sl_name_valid(name))
        return 0;
    return sl_err_set(err, SL_SPEC, "`%.100s` is not a job's name: 1 to %d of a-z 0-9 . _ -, first a letter or digit",
                      name, SL_NAME_MAX);
}

/* The newest version's number; -1: there is no such job. */
static int newest(const struct sl_jobs *jobs, const char *name)
{
    char path[SL_PATH_MAX];
    DIR *d = sl_path(path, NULL, "%s/%s", jobs->dir, name) ? NULL : opendir(path);
    int most = -1;

    for (struct dirent *e; d && (e = readdir(d));) {
        char *dot = strrchr(e->d_name, '.');
        if (!dot || strcmp(dot, ".json") != 0)
            continue;
        *dot = 0;
        int n = sl_version_number(e->d_name);
        most = n > most ? n : most;
    }
    if (d)
        closedir(d);
    return most;
}

static int read_version(const struct sl_jobs *jobs, const char *name, int version, json_t **ret_job,
                        struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = check_name(name, err);

    if (!rc && version < 0 && (version = newest(jobs, name)) < 0)
        rc = sl_err_set(err, SL_NOTFOUND, "there is no job %s; `softlaunch job ls` lists what there is", name);
    if (!rc)
        rc = sl_path(path, err, "%s/%s/v%d.json", jobs->dir, name, version);
    if (!rc && !sl_file_exists(path))
        rc = sl_err_set(err, SL_NOTFOUND, "job %s has no version %d", name, version);
    return rc ? rc : sl_json_read(path, 2 * SL_JOB_MAX_BYTES, ret_job, err);
}

/* The job without what put adds. */
static bool same_content(const json_t *job, const json_t *content)
{
    json_t *bare = json_copy((json_t *)(uintptr_t)job);
    bool same;

    json_object_del(bare, "job");
    json_object_del(bare, "version");
    json_object_del(bare, "created");
    same = json_equal(bare, (json_t *)(uintptr_t)content);
    json_decref(bare);
    return same;
}

/* On the disk when it returns, the job's folder too. */
static int keep_version(const struct sl_jobs *jobs, const char *name, int version, const json_t *job, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/%s", jobs->dir, name);

    if (!rc)
        rc = sl_mkdirs(path, err);
    if (!rc)
        rc = sl_dir_sync(jobs->dir, err);
    if (!rc)
        rc = sl_path(path, err, "%s/%s/v%d.json", jobs->dir, name, version);
    return rc ? rc : sl_json_write(path, job, err);
}

static int write_version(const struct sl_jobs *jobs, const char *name, int version,
                         const json_t *content, json_t **ret_job, struct sl_err *err)
{
    json_t *job = json_copy((json_t *)(uintptr_t)content);
    char now[32], *text;
    int rc = 0;

    sl_format_time(sl_now_us(), now);
    if (!job || json_object_set_new(job, "job", json_string(name)) ||
        json_object_set_new(job, "version", json_integer(version)) ||
        json_object_set_new(job, "created", json_string(now)))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    text = rc ? NULL : sl_json_dump(job);
    if (text && strlen(text) > SL_JOB_MAX_BYTES)
        rc = sl_err_set(err, SL_SPEC, "job %s would have more than %u bytes", name, SL_JOB_MAX_BYTES);
    free(text);
    if (!rc)
        rc = keep_version(jobs, name, version, job, err);
    if (rc)
        json_decref(job);
    else
        *ret_job = job;
    return rc;
}

int sl_jobs_put(struct sl_jobs *jobs, const char *name, const json_t *content, json_t **ret_job,
                struct sl_err *err)
{
    json_t *old = NULL;
    int rc = check_name(name, err), version = -1;

    if (rc)
        return rc;
    pthread_mutex_lock(&jobs->mutex);
    version = newest(jobs, name);
    if (version >= 0)
        rc = read_version(jobs, name, version, &old, err);
    if (!rc && old && same_content(old, content))
        *ret_job = json_incref(old);
    else if (!rc)
        rc = write_version(jobs, name, version + 1, content, ret_job, err);
    pthread_mutex_unlock(&jobs->mutex);
    json_decref(old);
    return rc;
}

int sl_jobs_import(struct sl_jobs *jobs, const json_t *job, bool *ret_changed, struct sl_err *err)
{
    const char *name = sl_json_str(job, "job", "");
    int version = (int)sl_json_int(job, "version", -1), rc = check_name(name, err);
    char *text = sl_json_dump(job);
    json_t *there = NULL;

    if (!rc && (version < 0 || !json_is_object(json_object_get(job, "spec")) || !text || strlen(text) > SL_JOB_MAX_BYTES))
        rc = sl_err_set(err, SL_SPEC, "job %s of the import is not as it should be", name);
    free(text);
    if (rc)
        return rc;
    pthread_mutex_lock(&jobs->mutex);
    if (!read_version(jobs, name, version, &there, NULL)) {
        if (!json_equal(there, (json_t *)(uintptr_t)job))
            rc = sl_err_set(err, SL_CONFLICT, "version %d of job %s is here with other content", version, name);
    } else {
        rc = keep_version(jobs, name, version, job, err);
        *ret_changed = !rc;
    }
    pthread_mutex_unlock(&jobs->mutex);
    json_decref(there);
    return rc;
}

int sl_jobs_show(struct sl_jobs *jobs, const char *name, int version, json_t **ret_job,
                 struct sl_err *err)
{
    pthread_mutex_lock(&jobs->mutex);
    int rc = read_version(jobs, name, version, ret_job, err);
    pthread_mutex_unlock(&jobs->mutex);
    return rc;
}

const char *sl_job_project(const json_t *job)
{
    return sl_json_str(job, "spec.project", "default");
}

int sl_jobs_list(struct sl_jobs *jobs, json_t **ret_list, struct sl_err *err)
{
    json_t *list = json_array();
    struct dirent **entries;
    int n = list ? scandir(jobs->dir, &entries, NULL, alphasort) : -1, rc = 0;

    if (n < 0) {
        json_decref(list);
        return sl_err_errno(err, "reading %s", jobs->dir);
    }
    for (int i = 0; i < n; i++) {
        json_t *job = NULL;
        if (!rc && json_array_size(list) < SL_JOBS_MAX && sl_name_valid(entries[i]->d_name) &&
            newest(jobs, entries[i]->d_name) >= 0) {
            rc = sl_jobs_show(jobs, entries[i]->d_name, -1, &job, err);
            json_object_set_new(job, "project", json_string(sl_job_project(job)));
            json_object_del(job, "spec");
            json_object_del(job, "inputs");
            if (!rc && json_array_append_new(list, job))
                rc = sl_err_set(err, SL_NOMEM, "out of memory");
        }
        free(entries[i]);
    }
    free(entries);
    if (rc)
        json_decref(list);
    else
        *ret_list = list;
    return rc;
}

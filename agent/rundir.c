#include "agent/rundir.h"
#include "artifacts/plan.h"
#include "base/json.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEASE_PART 12 /* hex digits of the lease id in the folder's name */

#define MAKE_TRIES 100   /* of a folder, against an agent that starts and cleans */
#define GONE ".gone-"    /* begins the name of a folder that is being removed */
#define INPUTS "inputs/" /* where the fetch puts what the spec names */

#define RESTORE_KEY "config.model.restore_path"
#define RESTORE "restore" /* its name below inputs/ */

static const char *const kinds[] = {"train", "validation", "test"};
#define N_KINDS (sizeof kinds / sizeof *kinds)

/* ---- the folder
 * -------------------------------------------------------------------------------------------- */

/* 0: locked; 1: somebody holds it, or has removed the folder meanwhile; else an error. */
static int take_lock(const char *dir, int *ret_fd, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct stat ours, there;
    int rc = sl_path(path, err, "%s/lock", dir), fd;

    if (rc)
        return rc;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno == ENOENT ? 1 : sl_err_errno(err, "opening %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        int e = errno;
        close(fd);
        errno = e;
        return e == EWOULDBLOCK ? 1 : sl_err_errno(err, "locking %s", path);
    }
    if (fstat(fd, &ours) || stat(path, &there) || ours.st_ino != there.st_ino) {
        close(fd);
        return 1;
    }
    *ret_fd = fd;
    return 0;
}

int sl_rundir_clean(const char *work_dir, struct sl_err *err)
{
    char runs[SL_PATH_MAX], path[SL_PATH_MAX] = "", gone[SL_PATH_MAX] = "";
    struct dirent *e;
    DIR *d;
    int fd = -1, rc = sl_path(runs, err, "%s/runs", work_dir);

    if (!rc)
        rc = sl_mkdirs(runs, err);
    if (rc)
        return rc;
    d = opendir(runs);
    if (!d)
        return sl_err_errno(err, "reading %s", runs);
    while (!rc && (e = readdir(d)) != NULL) {
        bool begun = !strncmp(e->d_name, GONE, strlen(GONE));

        if (e->d_name[0] == '.' && !begun)
            continue;
        rc = sl_path(path, err, "%s/%s", runs, e->d_name);
        if (!rc && begun) { /* by a cleaning that was cut short, or is under way */
            sl_rmtree(path, NULL);
            continue;
        }
        if (rc || take_lock(path, &fd, NULL))
            continue; /* in use, or not ours to remove */
        /* Out of the way in one step: what is made under its name from now on is not ours. */
        rc = sl_path(gone, err, "%s/" GONE "%s", runs, e->d_name);
        if (!rc && rename(path, gone))
            rc = sl_err_errno(err, "removing %s", path);
        if (!rc)
            rc = sl_rmtree(gone, err);
        close(fd);
    }
    closedir(d);
    return rc;
}

int sl_rundir_make(const char *work_dir, const char *run, const char *lease,
                   struct sl_rundir *ret_dir, struct sl_err *err)
{
    struct sl_rundir dir = {.lock_fd = -1};
    char inputs[SL_PATH_MAX];
    int rc = sl_path(dir.path, err, "%s/runs/%s-%.*s", work_dir, run, LEASE_PART, lease);

    /* An agent that starts now may take the folder for a dead one's until it is locked. */
    for (int i = 0; !rc && dir.lock_fd < 0; i++) {
        struct sl_err *said = i < MAKE_TRIES ? NULL : err;

        rc = sl_mkdirs(dir.path, said);
        if (!rc)
            rc = take_lock(dir.path, &dir.lock_fd, said);
        if (rc == 1)
            rc = sl_err_set(said, SL_CONFLICT, "%s is in use by another agent", dir.path);
        if (!said)
            rc = 0; /* once more */
    }
    if (!rc)
        rc = sl_path(inputs, err, "%s/inputs", dir.path);
    if (!rc)
        rc = sl_mkdirs(inputs, err);
    if (rc) {
        if (dir.lock_fd >= 0)
            sl_rundir_remove(&dir);
        return rc;
    }
    *ret_dir = dir;
    return 0;
}

void sl_rundir_remove(struct sl_rundir *dir)
{
    if (!dir || dir->lock_fd < 0)
        return;
    sl_rmtree(dir->path, NULL); /* what stays is removed by a later clean */
    close(dir->lock_fd);
    dir->lock_fd = -1;
}

/* ---- plans
 * -------------------------------------------------------------------------------------------------
 */

/* Steals json. Without fsync, which could hold up the agent's loop: after a power cut nobody reads
 * it. */
static int write_plan(const struct sl_rundir *dir, const char *name, json_t *json,
                      char ret_plan[SL_PATH_MAX], struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = json ? sl_path(path, err, "%s/%s", dir->path, name)
                  : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc && json_dump_file(json, path, JSON_INDENT(2)))
        rc = sl_err_errno(err, "writing %s", path);
    json_decref(json);
    if (!rc)
        memcpy(ret_plan, path, strlen(path) + 1);
    return rc;
}

/* A source of the spec is a reference, or {"ref", "sha256"}. */
static json_t *fetch_item(const json_t *source, const char *dest)
{
    if (json_is_string(source))
        return json_pack("{s:s, s:s}", "ref", json_string_value(source), "dest", dest);
    return json_pack("{s:s, s:s*, s:s}", "ref", sl_json_str(source, "ref", ""), "sha256",
                     sl_json_str(source, "sha256", NULL), "dest", dest);
}

static void data_name(char ret_name[64], const char *kind, size_t i)
{
    snprintf(ret_name, 64, INPUTS "%s-%zu.jsonl", kind, i);
}

int sl_rundir_fetch_plan(const struct sl_rundir *dir, const struct sl_claim *claim,
                         const struct sl_fetch_plan *plan, char ret_plan[SL_PATH_MAX],
                         struct sl_err *err)
{
    json_t *items = json_array(), *roots = json_array();
    char dest[64], key[64];

    for (int i = 0; i < plan->n_allow_paths; i++)
        json_array_append_new(roots, json_string(plan->allow_paths[i]));
    /* First: it says of which versions the others are. */
    if (claim->checkpoint[0])
        json_array_append_new(items, json_pack("{s:s, s:s, s:b}", "manifest", claim->checkpoint,
                                               "dest", "checkpoint", "unpack", 1));
    json_array_append_new(items, fetch_item(sl_json_get(claim->spec, "model"), "inputs/model"));
    for (size_t k = 0; k < N_KINDS; k++) {
        snprintf(key, sizeof key, "datasets.%s", kinds[k]);
        const json_t *list = sl_json_get(claim->spec, key);
        if (json_array_size(list) > SL_RUNDIR_SOURCES_MAX) {
            json_decref(items);
            json_decref(roots);
            return sl_err_set(err, SL_SPEC, "%s has more than %d entries", key,
                              SL_RUNDIR_SOURCES_MAX);
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            data_name(dest, kinds[k], i);
            json_array_append_new(items, fetch_item(json_array_get(list, i), dest));
        }
    }
    if (sl_json_str(claim->spec, RESTORE_KEY, NULL))
        json_array_append_new(items, json_pack("{s:s, s:s, s:s}", "ref",
                                               sl_json_str(claim->spec, RESTORE_KEY, NULL), "dest",
                                               INPUTS RESTORE, "unpack", "tarball"));
    return write_plan(dir, "fetch.json",
                      json_pack("{s:s, s:s, s:I, s:o, s:s, s:o}", "server", plan->server, "cache",
                                plan->cache, "cache_bytes", (json_int_t)plan->cache_bytes, "allow_paths", roots, "run_dir", dir->path, "items",
                                items),
                      ret_plan, err);
}

int sl_rundir_run_json(const struct sl_rundir *dir, const struct sl_claim *claim,
                       struct sl_err *err)
{
    json_t *datasets = json_object(),
           *config = json_deep_copy(json_object_get(claim->spec, "config"));
    json_t *outputs = json_object_get(claim->spec, "outputs");
    char name[64], key[64], path[SL_PATH_MAX];

    for (size_t k = 0; k < N_KINDS; k++) {
        json_t *files = json_array();
        snprintf(key, sizeof key, "datasets.%s", kinds[k]);
        for (size_t i = 0; i < json_array_size(sl_json_get(claim->spec, key)); i++) {
            data_name(name, kinds[k], i);
            json_array_append_new(files, json_string(name));
        }
        json_object_set_new(datasets, kinds[k], files);
    }
    if (sl_json_str(claim->spec, RESTORE_KEY, NULL))
        json_object_set_new(json_object_get(config, "model"), "restore_path",
                            json_string(INPUTS RESTORE));
    return write_plan(dir, "run.json",
                      json_pack("{s:s, s:i, s:s, s:s, s:o, s:o*, s:O*, s:O*}", "run", claim->run,
                                "attempt", claim->attempt, "name", claim->name, "model",
                                "inputs/model", "datasets", datasets, "config", config, "outputs",
                                outputs, "trials", json_object_get(claim->spec, "trials")),
                      path, err);
}

/* What a name below inputs/ stands for, and how much of it that takes; NULL: nothing of ours. */
static const char *source_of(const struct sl_claim *claim, const char *name, size_t *ret_len)
{
    const json_t *source = NULL;
    char key[64], own[64];

    if (!strncmp(name, "model", 5)) {
        source = sl_json_get(claim->spec, "model");
        *ret_len = 5;
    }
    if (!strncmp(name, RESTORE, strlen(RESTORE))) {
        source = sl_json_get(claim->spec, RESTORE_KEY);
        *ret_len = strlen(RESTORE);
    }
    for (size_t k = 0; k < N_KINDS && !source; k++) {
        snprintf(key, sizeof key, "datasets.%s", kinds[k]);
        const json_t *list = sl_json_get(claim->spec, key);
        for (size_t i = 0; i < json_array_size(list) && !source; i++) {
            data_name(own, kinds[k], i);
            *ret_len = strlen(own + strlen(INPUTS));
            if (!strncmp(name, own + strlen(INPUTS), *ret_len))
                source = json_array_get(list, i);
        }
    }
    return json_is_string(source) ? json_string_value(source) : sl_json_str(source, "ref", NULL);
}

void sl_rundir_name_sources(const struct sl_rundir *dir, const struct sl_claim *claim, char *text,
                            size_t size)
{
    char prefix[SL_PATH_MAX], *old = strdup(text);
    const char *from = old, *at;
    struct sl_buf out;
    int rc = !old || sl_path(prefix, NULL, "%s/" INPUTS, dir->path);

    sl_buf_init(&out, size - 1);
    while (!rc && (at = strstr(from, prefix)) != NULL) {
        size_t len = 0;
        const char *name = at + strlen(prefix), *source = source_of(claim, name, &len);
        rc = sl_buf_add(&out, from, (size_t)(at - from)) ||
             sl_buf_adds(&out, source ? source : prefix);
        from = name + (source ? len : 0);
    }
    if (!rc && !sl_buf_adds(&out, from))
        snprintf(text, size, "%s", out.p);
    sl_buf_release(&out);
    free(old);
}

int sl_rundir_checkpoint_plan(const struct sl_rundir *dir, const struct sl_claim *claim, const json_t *inputs,
                              const char *lease, const char *server, const char *from,
                              char ret_plan[SL_PATH_MAX], struct sl_err *err)
{
    if (from[0] == '/' || strstr(from, ".."))
        return sl_err_set(err, SL_DATA, "the worker names a checkpoint outside its folder: %s",
                          from);
    return write_plan(dir, "push-checkpoint.json",
                      json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:s, s:s, s:o*}]}", "server", server,
                                "run", claim->run, "lease", lease, "run_dir", dir->path, "items",
                                "output", "checkpoint", "tar", "checkpoint.tar.zst", "dir", from, "inputs",
                                inputs ? sl_plan_inputs(inputs) : NULL),
                      ret_plan, err);
}

int sl_rundir_publish_plan(const struct sl_rundir *dir, const struct sl_claim *claim,
                           const char *lease, const struct sl_publish_plan *plan,
                           char ret_plan[SL_PATH_MAX], struct sl_err *err)
{
    const char *artifact = sl_json_str(claim->spec, "outputs.artifact", claim->name);
    json_t *outputs = json_object_get(claim->spec, "outputs"), *aliases = json_object_get(outputs, "aliases");
    json_t *publish = json_pack("{s:O?, s:o?, s:O*}", "metrics", plan->metrics, "facts",
                                sl_rundir_facts(claim, plan->inputs, plan->started), "register",
                                json_object_get(outputs, "register"));
    char tar[SL_PATH_MAX];
    int rc = sl_path(tar, err, "%s.tar.zst", artifact);

    if (rc) {
        json_decref(publish);
        return rc;
    }
    return write_plan(dir, "push-outputs.json",
                      json_pack("{s:s, s:s, s:s, s:s, s:[{s:s, s:s, s:s, s:s, s:O*}], s:o}",
                                "server", plan->server, "run", claim->run, "lease", lease, "run_dir",
                                dir->path, "items", "output", "prompts", "tar", tar, "dir", "out",
                                "artifact", artifact, "aliases", aliases, "publish", publish),
                      ret_plan, err);
}

int sl_rundir_resume_from(const struct sl_rundir *dir, const char *from, struct sl_err *err)
{
    char link[SL_PATH_MAX];
    int rc;

    if (!strcmp(from, "checkpoint"))
        return 0;
    rc = sl_path(link, err, "%s/checkpoint", dir->path);
    if (!rc)
        rc = sl_rmtree(link, err);
    if (!rc && symlink(from, link))
        rc = sl_err_errno(err, "linking %s to %s", link, from);
    return rc;
}

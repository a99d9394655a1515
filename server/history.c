#include "server/history.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "server/history_priv.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Holding feed. */
static int put(struct sl_history *h, const json_t *runs, bool archived, struct sl_err *err)
{
    int rc = sl_runs_index_put(h->index, runs, archived, err);

    return rc || !h->second ? rc : sl_runs_index_put(h->second, runs, archived, err);
}

static int remove_rows(struct sl_history *h, const json_t *ids, struct sl_err *err)
{
    int rc = sl_runs_index_remove(h->index, ids, err);

    return rc || !h->second ? rc : sl_runs_index_remove(h->second, ids, err);
}

/* ---- Redis's changes ------------------------------------------------------------------------- */

/* Holding feed. Until nothing waits, or for so long; 0: without a limit. */
static int take_over(struct sl_history *h, int64_t most_ms, struct sl_err *err)
{
    int64_t until_us = sl_boot_us() + most_ms * 1000;
    bool more = true;
    int rc = 0;

    while (!rc && more) {
        json_t *changes = NULL;
        rc = sl_queue_changes(h->queue, h->taken, &changes, err);
        if (rc)
            break;
        json_decref(h->taken);
        h->taken = NULL;
        more = json_array_size(changes) > 0 && (!most_ms || sl_boot_us() < until_us);
        rc = put(h, changes, false, err);
        if (!rc && json_array_size(changes))
            h->taken = json_incref(changes);
        json_decref(changes);
    }
    if (rc) { /* it may be another Redis that answers next */
        json_decref(h->taken);
        h->taken = NULL;
        h->whole &= rc != SL_RETRY;
    }
    return rc;
}

/* ---- what the server asks -------------------------------------------------------------------- */

static bool lock_feed(struct sl_history *h)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SL_HISTORY_WAIT_MS / 1000;
    return !pthread_mutex_timedlock(&h->feed, &until);
}

int sl_history_list(struct sl_history *h, const struct sl_runs_query *query, json_t **ret_page,
                    struct sl_err *err)
{
    struct sl_err away = SL_ERR_INIT;
    json_t *page;
    int rc, live = 0;

    if (lock_feed(h)) {
        live = take_over(h, SL_HISTORY_CATCH_UP_MS, &away);
        pthread_mutex_unlock(&h->feed);
    }
    pthread_rwlock_rdlock(&h->swap);
    rc = sl_runs_index_query(h->index, query, &page, err);
    pthread_rwlock_unlock(&h->swap);
    if (rc)
        return rc;
    if (!live)
        live = sl_queue_waiting_for(h->queue, json_object_get(page, "runs"), &away);
    json_object_set_new(page, "live", json_boolean(!live));
    *ret_page = page;
    return 0;
}

int sl_history_archive(struct sl_history *h, const json_t *record, struct sl_err *err)
{
    json_t *kept; /* of a record that was there already that one */
    int rc;

    pthread_mutex_lock(&h->feed);
    rc = sl_archive_put(h->archive, record, err);
    if (!rc)
        rc = sl_archive_show(h->archive, sl_json_str(record, "run", ""), &kept, err);
    if (!rc) {
        json_t *records = json_pack("[o]", kept);
        rc = put(h, records, true, err);
        json_decref(records);
    }
    pthread_mutex_unlock(&h->feed);
    return rc;
}

int sl_history_expire(struct sl_history *h, int64_t before_ms, int most, int *ret_removed,
                      struct sl_err *err)
{
    json_t *ids, *id;
    size_t i;
    int rc;

    pthread_mutex_lock(&h->feed);
    rc = sl_runs_index_old(h->index, before_ms, most, &ids, err);
    if (!rc) {
        /* A crash leaves rows that lead to nothing; the next pass removes them. */
        json_array_foreach(ids, i, id)
            if (!rc)
                rc = sl_archive_remove(h->archive, json_string_value(id), err);
        if (!rc)
            rc = remove_rows(h, ids, err);
        if (!rc)
            *ret_removed = (int)json_array_size(ids);
        json_decref(ids);
    }
    pthread_mutex_unlock(&h->feed);
    return rc;
}

int sl_history_newest(struct sl_history *h, int64_t *ret_seq, struct sl_err *err)
{
    pthread_rwlock_rdlock(&h->swap);
    int rc = sl_runs_index_newest(h->index, ret_seq, err);
    pthread_rwlock_unlock(&h->swap);
    return rc;
}

int sl_history_note(struct sl_history *h, const char *run, const json_t *notes, const json_t *tags,
                    json_t **ret_note, struct sl_err *err)
{
    json_t *note;
    int rc;

    pthread_mutex_lock(&h->feed);
    rc = sl_archive_note(h->archive, run, &note, err);
    if (!rc) {
        if (notes)
            json_object_set(note, "notes", (json_t *)(uintptr_t)notes);
        if (tags)
            json_object_set(note, "tags", (json_t *)(uintptr_t)tags);
        rc = sl_archive_set_note(h->archive, run, note, err);
        if (!rc)
            rc = sl_runs_index_note(h->index, run, note, err);
        if (!rc && h->second)
            rc = sl_runs_index_note(h->second, run, note, err);
        if (rc)
            json_decref(note);
        else
            *ret_note = note;
    }
    pthread_mutex_unlock(&h->feed);
    return rc;
}

/* ---- made anew ------------------------------------------------------------------------------- */

static void set_report(struct sl_history *h, json_t *report_stolen)
{
    pthread_mutex_lock(&h->mutex);
    json_decref(h->report);
    h->report = report_stolen;
    pthread_mutex_unlock(&h->mutex);
}

int sl_history_reindex(struct sl_history *h, struct sl_err *err)
{
    int rc = 0;

    pthread_mutex_lock(&h->mutex);
    if (h->wanted)
        rc = sl_err_set(err, SL_CONFLICT, "the read model is being made anew already");
    else
        h->report = (json_decref(h->report), json_pack("{s:s}", "state", "running"));
    h->wanted = true;
    pthread_mutex_unlock(&h->mutex);
    return rc;
}

json_t *sl_history_reindexed(struct sl_history *h)
{
    pthread_mutex_lock(&h->mutex);
    json_t *report = json_deep_copy(h->report);
    pthread_mutex_unlock(&h->mutex);
    return report;
}

/* Holding feed: the second takes the first's place. */
static int swap_in(struct sl_history *h, const char *second_path, struct sl_err *err)
{
    struct sl_runs_index *index = NULL;
    char wal[SL_PATH_MAX], shm[SL_PATH_MAX];
    bool fresh = false;
    int rc = sl_path(wal, err, "%s-wal", h->path);

    if (!rc)
        rc = sl_path(shm, err, "%s-shm", h->path);
    if (rc)
        return rc;
    pthread_rwlock_wrlock(&h->swap);
    sl_runs_index_close(h->second); /* its log goes into the file */
    h->second = NULL;
    sl_runs_index_close(h->index);
    h->index = NULL;
    remove(wal); /* there are some when another process has the file open, and would count for the new one */
    remove(shm);
    if (rename(second_path, h->path))
        rc = sl_err_errno(err, "%s", h->path);
    int opened = sl_runs_index_open(h->path, h->archive, &index, &fresh, err);
    if (!opened && fresh) {
        sl_runs_index_close(index);
        index = NULL;
        opened = sl_err_set(err, SL_IO, "%s: it was not sound when it was opened again", h->path);
    }
    h->index = index; /* NULL: it counts as damaged, and is made anew with the next tick */
    pthread_rwlock_unlock(&h->swap);
    h->whole &= !opened;
    rc = rc ? rc : opened;
    return rc;
}

static int make_anew(struct sl_history *h, bool (*stopping)(void *arg), void *arg, json_t **ret_report,
                     struct sl_err *err)
{
    char path[SL_PATH_MAX];
    struct sl_runs_index *second;
    json_t *report = NULL;
    bool fresh;
    int rc = sl_path(path, err, "%s.second", h->path);

    if (rc)
        return rc;
    remove(path);
    rc = sl_runs_index_open(path, h->archive, &second, &fresh, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&h->feed);
    h->second = second;
    pthread_mutex_unlock(&h->feed);
    rc = sl_history_take_archive(h, second, stopping, arg, err);
    if (!rc)
        rc = sl_history_sweep(h, second, false, 0, stopping, arg, err);
    pthread_mutex_lock(&h->feed);
    if (!rc)
        rc = take_over(h, 0, err);
    if (!rc && !sl_runs_index_damaged(h->index))
        rc = sl_runs_index_compare(h->index, second, &report, err);
    if (!rc)
        rc = swap_in(h, path, err);
    if (h->second) { /* it came to nothing */
        sl_runs_index_close(h->second);
        h->second = NULL;
        remove(path);
    }
    pthread_mutex_unlock(&h->feed);
    if (rc)
        json_decref(report);
    else
        *ret_report = report ? report : json_object();
    return rc;
}

static void reindex(struct sl_history *h, bool (*stopping)(void *arg), void *arg)
{
    int64_t start_us = sl_boot_us();
    struct sl_err err = SL_ERR_INIT;
    json_t *report = NULL;
    int rc = make_anew(h, stopping, arg, &report, &err);
    double seconds = (double)(sl_boot_us() - start_us) / 1e6;

    if (rc) {
        sl_log(SL_ERROR, NULL, "making the read model anew: %s", rc == SL_CANCELLED ? "stopped" : err.msg);
        set_report(h, json_pack("{s:s, s:s}", "state", "failed", "error", rc == SL_CANCELLED ? "the server was stopped" : err.msg));
    } else {
        sl_log(SL_INFO, NULL, "made the read model anew in %.1f s: %lld runs, %lld differences", seconds,
               (long long)sl_json_int(report, "runs", 0), (long long)sl_json_int(report, "n_differences", 0));
        json_object_set_new(report, "state", json_string("done"));
        json_object_set_new(report, "seconds", json_real(seconds));
        set_report(h, report);
    }
}

void sl_history_tick(struct sl_history *h, bool (*stopping)(void *arg), void *arg)
{
    struct sl_err err = SL_ERR_INIT;
    bool wanted;
    int rc = 0;

    pthread_mutex_lock(&h->mutex);
    wanted = h->wanted;
    pthread_mutex_unlock(&h->mutex);
    if (wanted || sl_runs_index_damaged(h->index)) {
        reindex(h, stopping, arg);
        pthread_mutex_lock(&h->mutex);
        h->wanted = false;
        pthread_mutex_unlock(&h->mutex);
        return;
    }
    if (!h->whole || sl_boot_us() - h->swept_us > SL_HISTORY_SWEEP_S * INT64_C(1000000)) {
        h->whole = true; /* unless Redis goes away meanwhile */
        rc = sl_history_sweep(h, h->index, false, 0, stopping, arg, &err);
        h->whole &= !rc;
        h->swept_us = sl_boot_us();
    }
    if (!rc) {
        pthread_mutex_lock(&h->feed);
        rc = take_over(h, 1000, &err);
        pthread_mutex_unlock(&h->feed);
    }
    if (rc && rc != SL_CANCELLED && !h->away)
        sl_log(rc == SL_RETRY ? SL_WARN : SL_ERROR, NULL, "the read model of runs: %s", err.msg);
    h->away = rc != 0;
}

int sl_history_open(const char *data_dir, struct sl_archive *archive, struct sl_queue *queue,
                    struct sl_history **ret_history, struct sl_err *err)
{
    struct sl_history *h = calloc(1, sizeof *h);
    struct sl_err away = SL_ERR_INIT;
    char path[SL_PATH_MAX];
    bool fresh;
    int rc = h ? sl_path(path, err, "%s/read.db", data_dir) : sl_err_set(err, SL_NOMEM, "out of memory");

    if (rc) {
        free(h);
        return rc;
    }
    h->archive = archive;
    h->queue = queue;
    h->report = json_pack("{s:s}", "state", "never");
    pthread_mutex_init(&h->feed, NULL);
    pthread_mutex_init(&h->mutex, NULL);
    pthread_rwlock_init(&h->swap, NULL);
    h->path = strdup(path);
    rc = h->path ? sl_runs_index_open(path, archive, &h->index, &fresh, err)
                 : sl_err_set(err, SL_NOMEM, "out of memory");
    /* Before anything is collected or listed: what a power cut took from the index is in the records. */
    if (!rc)
        rc = sl_history_take_archive(h, h->index, NULL, NULL, err);
    if (rc) {
        sl_history_close(h);
        return sl_err_wrap(err, rc, "opening the read model of runs");
    }
    h->whole = !sl_history_sweep(h, h->index, true, sl_boot_us() + SL_HISTORY_START_MS * 1000, NULL, NULL, &away);
    h->swept_us = sl_boot_us();
    *ret_history = h;
    return 0;
}

void sl_history_close(struct sl_history *h)
{
    if (!h)
        return;
    sl_runs_index_close(h->index);
    json_decref(h->taken);
    json_decref(h->report);
    pthread_rwlock_destroy(&h->swap);
    pthread_mutex_destroy(&h->mutex);
    pthread_mutex_destroy(&h->feed);
    free(h->path);
    free(h);
}

/* Filling an index of the runs from all that Redis and the archive have. */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "server/history_priv.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Redis ----------------------------------------------------------------------------------- */

/* The runs of Redis from `from` up to `below` are these: others that are there are gone. */
static int forget_others(struct sl_runs_index *x, const json_t *runs, int64_t from,
                         int64_t below, struct sl_err *err)
{
    json_t *ids, *id, *run, *here = json_object(), *gone = json_array();
    size_t i;
    int rc = sl_runs_index_live(x, from, below, &ids, err);

    if (!rc) {
        json_array_foreach(runs, i, run)
            json_object_set_new(here, sl_json_str(run, "run", ""), json_true());
        json_array_foreach(ids, i, id)
            if (!json_object_get(here, json_string_value(id)))
                json_array_append(gone, id);
        json_decref(ids);
        if (json_array_size(gone))
            rc = sl_runs_index_remove(x, gone, err);
    }
    json_decref(here);
    json_decref(gone);
    return rc;
}

int sl_history_sweep(struct sl_history *h, struct sl_runs_index *x, bool has_feed, int64_t until_us,
                     bool (*stopping)(void *arg), void *arg, struct sl_err *err)
{
    char below[24] = "";
    bool more = true;
    int rc = 0;

    while (!rc && more) {
        json_t *page, *runs;
        if (!has_feed)
            pthread_mutex_lock(&h->feed);
        rc = sl_queue_list(h->queue, *below ? below : NULL, SL_QUEUE_PAGE_MAX, NULL, NULL, NULL, &page, err);
        if (!rc) {
            const char *next = sl_json_str(page, "next", "");
            runs = json_object_get(page, "runs");
            rc = sl_runs_index_put(x, runs, false, err);
            if (!rc)
                rc = forget_others(x, runs, *next ? atoll(next) : 0, *below ? atoll(below) : INT64_MAX, err);
            more = *next;
            snprintf(below, sizeof below, "%.20s", next);
            json_decref(page);
        }
        if (!has_feed)
            pthread_mutex_unlock(&h->feed);
        if (!rc && more && ((stopping && stopping(arg)) || (until_us && sl_boot_us() > until_us)))
            return SL_CANCELLED;
    }
    return rc;
}

/* ---- the archive ----------------------------------------------------------------------------- */

/* What of two lists in order is only in the first. */
static json_t *missing(const json_t *of, const json_t *in)
{
    json_t *list = json_array(), *id;
    size_t i, k = 0;

    json_array_foreach(of, i, id) {
        const char *text = json_string_value(id);
        while (k < json_array_size(in) && strcmp(json_string_value(json_array_get(in, k)), text) < 0)
            k++;
        if (k == json_array_size(in) || strcmp(json_string_value(json_array_get(in, k)), text) != 0)
            json_array_append(list, id);
    }
    return list;
}

/* The records of one folder into x, holding feed; and rows without a record out of it. */
static int take_folder(struct sl_history *h, struct sl_runs_index *x, const char *prefix, struct sl_err *err)
{
    json_t *folders = NULL, *noted = NULL, *rows = NULL, *add, *gone, *records = json_array(), *id, *record;
    size_t i;
    int rc = sl_archive_ids(h->archive, prefix, &folders, err);

    if (!rc)
        rc = sl_archive_noted(h->archive, prefix, &noted, err);
    if (!rc)
        rc = sl_runs_index_archived(x, prefix, &rows, err);
    add = missing(folders, rows);
    gone = missing(rows, folders);
    json_array_foreach(add, i, id) {
        struct sl_err unread = SL_ERR_INIT;
        if (rc || !sl_archive_has(h->archive, json_string_value(id))) /* live */
            continue;
        if (sl_archive_show(h->archive, json_string_value(id), &record, &unread))
            sl_log(SL_ERROR, json_string_value(id), "its record cannot be read: %s", unread.msg);
        else
            json_array_append_new(records, record);
    }
    if (!rc)
        rc = sl_runs_index_put(x, records, true, err);
    if (!rc && json_array_size(gone))
        rc = sl_runs_index_remove(x, gone, err);
    json_array_foreach(noted, i, id) { /* a kill may have come between the file and the row */
        json_t *note = NULL;
        if (!rc)
            rc = sl_archive_note(h->archive, json_string_value(id), &note, err);
        if (!rc)
            rc = sl_runs_index_note(x, json_string_value(id), note, err);
        json_decref(note);
    }
    json_decref(noted);
    json_decref(records);
    json_decref(folders);
    json_decref(rows);
    json_decref(add);
    json_decref(gone);
    return rc;
}

int sl_history_take_archive(struct sl_history *h, struct sl_runs_index *x, bool (*stopping)(void *arg), void *arg,
                            struct sl_err *err)
{
    char prefix[3];
    int rc = 0;

    for (int i = 0; !rc && i < 256; i++) {
        snprintf(prefix, sizeof prefix, "%02x", (unsigned)i);
        pthread_mutex_lock(&h->feed);
        rc = take_folder(h, x, prefix, err);
        pthread_mutex_unlock(&h->feed);
        if (!rc && stopping && stopping(arg))
            return SL_CANCELLED;
    }
    return rc;
}

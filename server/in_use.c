/* What runs use of the store: checkpoints that a run would go on from, versions that running ones name. */
#include "artifacts/names.h"
#include "base/json.h"
#include "server/keeper.h"
#include <string.h>

#define PAGE 200

static int add_checkpoints(const json_t *list, json_t *manifests, struct sl_err *err)
{
    size_t i;
    json_t *run;
    json_array_foreach(list, i, run) {
        const char *checkpoint = sl_json_str(run, "checkpoint", "");
        if (*checkpoint && strcmp(sl_json_str(run, "state", ""), "succeeded") != 0 &&
            json_array_append_new(manifests, json_string(checkpoint)))
            return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    return 0;
}

/* "next" of a page, and whether there is one. */
static bool next_page(const json_t *page, char below[32])
{
    const json_t *next = json_object_get(page, "next");
    if (json_is_integer(next))
        snprintf(below, 32, "%lld", (long long)json_integer_value(next));
    else
        snprintf(below, 32, "%s", json_is_string(next) ? json_string_value(next) : "");
    return below[0];
}

int sl_runs_live_manifests(void *arg, json_t *manifests, struct sl_err *err)
{
    static const char *const ended[] = {"failed", "dead", "cancelled"};
    struct sl_runs *runs = arg;
    char below[32] = "";
    bool more = true;
    int rc = 0;
    /* Redis first: what is archived meanwhile is found in the archive. */
    while (rc == 0 && more) {
        json_t *page = NULL;
        rc = sl_queue_list(runs->queue, *below ? below : NULL, PAGE, NULL, NULL, NULL, &page, err);
        if (rc == 0)
            rc = add_checkpoints(json_object_get(page, "runs"), manifests, err);
        more = rc == 0 && next_page(page, below);
        json_decref(page);
    }
    for (size_t i = 0; rc == 0 && i < sizeof ended / sizeof *ended; i++) {
        below[0] = 0;
        struct sl_runs_query query = {.state = ended[i], .limit = PAGE};
        for (more = true; rc == 0 && more;) {
            json_t *page = NULL;
            rc = sl_history_list(runs->history, &query, &page, err);
            if (rc == 0)
                rc = add_checkpoints(json_object_get(page, "runs"), manifests, err);
            more = rc == 0 && next_page(page, below);
            query.below = more ? atoll(below) : 0;
            json_decref(page);
        }
    }
    return rc;
}

/* ---- versions -------------------------------------------------------------------------------- */

/* source: a reference, or {"ref"}. */
static bool names_version(struct sl_store *store, const json_t *source, const char *name,
                          int number)
{
    const char *text =
        json_is_string(source) ? json_string_value(source) : sl_json_str(source, "ref", NULL);
    struct sl_ref ref;
    json_t *record = NULL;
    if (!text || strstr(text, "://") || text[0] == '/' || sl_ref_parse(text, &ref, NULL) ||
        strcmp(ref.name, name) != 0)
        return false;
    bool same = sl_store_resolve(store, name, ref.version, &record, NULL) == 0 &&
                sl_json_int(record, "number", -1) == number;
    json_decref(record);
    return same;
}

static bool spec_names(struct sl_store *store, const json_t *spec, const char *name, int number)
{
    const char *kind;
    json_t *list, *source;
    size_t i;
    if (names_version(store, json_object_get(spec, "model"), name, number) ||
        names_version(store, sl_json_get(spec, "config.model.restore_path"), name, number))
        return true;
    json_object_foreach(json_object_get(spec, "datasets"), kind, list)
        json_array_foreach(list, i, source)
            if (names_version(store, source, name, number))
                return true;
    return false;
}

/* Whether a run that goes on from this checkpoint needs the version. One that cannot be read keeps nothing. */
static bool checkpoint_names(struct sl_store *store, const char *checkpoint, const char *name, int number)
{
    json_t *manifest = NULL, *in;
    bool found = false;
    size_t i;
    if (*checkpoint && sl_store_manifest(store, checkpoint, &manifest, NULL, NULL) == 0)
        json_array_foreach(json_object_get(manifest, "inputs"), i, in)
            found |= !strcmp(sl_json_str(in, "name", ""), name) &&
                     sl_version_number(sl_json_str(in, "version", NULL)) == number;
    json_decref(manifest);
    return found;
}

/* listed: as a page of the queue has it. */
static int guard_run(struct sl_runs *runs, const json_t *listed, const char *name, int number, struct sl_err *err)
{
    static const char *const live[] = {"running", "queued", "delayed"};
    const char *id = sl_json_str(listed, "run", ""), *state = sl_json_str(listed, "state", "");
    struct sl_store *store = runs->server->store;
    json_t *whole = NULL;
    bool is_live = false;
    for (size_t i = 0; i < sizeof live / sizeof *live; i++)
        is_live |= !strcmp(state, live[i]);
    if (!is_live)
        return 0;
    if (checkpoint_names(store, sl_json_str(listed, "checkpoint", ""), name, number))
        return sl_err_set(err, SL_CONFLICT, "%s:v%d is in use: run %s goes on with it", name, number, id);
    if (strcmp(state, "running") != 0)
        return 0;
    int rc = sl_queue_show(runs->queue, id, &whole, err);
    if (rc == SL_NOTFOUND) { /* ended and archived meanwhile */
        sl_err_clear(err);
        rc = 0;
    } else if (rc == 0 && spec_names(store, json_object_get(whole, "spec"), name, number)) {
        rc = sl_err_set(err, SL_CONFLICT, "%s:v%d is in use: run %s was started with it", name, number, id);
    }
    json_decref(whole);
    return rc;
}

int sl_runs_guard_version(void *arg, const char *name, int number, struct sl_err *err)
{
    struct sl_runs *runs = arg;
    char below[32] = "";
    bool more = true;
    int rc = 0;
    while (rc == 0 && more) {
        json_t *page = NULL, *run;
        size_t i;
        rc = sl_queue_list(runs->queue, *below ? below : NULL, PAGE, NULL, NULL, NULL, &page, err);
        json_array_foreach(rc ? NULL : json_object_get(page, "runs"), i, run) {
            rc = guard_run(runs, run, name, number, err);
            if (rc)
                break;
        }
        more = rc == 0 && next_page(page, below);
        json_decref(page);
    }
    return rc;
}

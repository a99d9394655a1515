/* A project out of one server and into another:
 *
 *   GET  /api/v1/projects/{project}/export   200, application/x-ndjson: a line for each entry, as artifacts/portable.h has them, then
 *        {"kind": "job", "job": one version of one}, {"kind": "events", "run", "events": some, oldest first},
 *        {"kind": "run", "run": an archived run's record, behind its events}, {"kind": "note", "run", "notes", "tags"} if it has any.
 *        Runs that are not archived yet are not in it: {"kind": "end", "project", "version": softlaunch's, "live_runs": how many} is
 *        the last line. Blobs go by GET /blobs/{sha256}.
 *   POST /api/v1/projects/{project}/import   such lines, a few at a time, in that order, after their blobs; for administrators.
 *        200 {"changed", "unchanged", "kept": [text, ...]}. Repeating it changes nothing. */
#include "artifacts/names.h"
#include "artifacts/portable.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "server/portable.h"
#include "server/archive.h"
#include "server/jobs.h"
#include "server/note.h"
#include "server/runs.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 200
#define EVENTS_A_LINE 500
#define KEPT_MAX 100

static int check_project(const char *project, struct sl_err *err)
{
    return sl_name_valid(project) ? 0 : sl_err_set(err, SL_SPEC, "`%.100s` is not a project's name", project);
}

/* ---- export ---------------------------------------------------------------------------------- */

struct writing {
    struct sl_server *server;
    const char *project;
    FILE *f;
    struct sl_sha256 digest;
    int64_t bytes;
    const char *run; /* whose events come */
    json_t *events;  /* waiting for a line */
};

static int write_line(void *arg, const json_t *entry, struct sl_err *err)
{
    struct writing *w = arg;
    char *text = sl_json_dump(entry);
    size_t len = text ? strlen(text) : 0;
    int rc = text ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");

    if (!rc) {
        text[len++] = '\n';
        if (fwrite(text, 1, len, w->f) != len)
            rc = sl_err_errno(err, "writing the export");
        sl_sha256_update(&w->digest, text, len);
        w->bytes += (int64_t)len;
    }
    free(text);
    return rc;
}

static int write_new(struct writing *w, json_t *entry_stolen, struct sl_err *err)
{
    int rc = entry_stolen ? write_line(w, entry_stolen, err) : sl_err_set(err, SL_NOMEM, "out of memory");

    json_decref(entry_stolen);
    return rc;
}

static int flush_events(struct writing *w, struct sl_err *err)
{
    int rc = 0;

    if (json_array_size(w->events))
        rc = write_new(w, json_pack("{s:s, s:s, s:O}", "kind", "events", "run", w->run, "events", w->events), err);
    json_array_clear(w->events);
    return rc;
}

static int on_event(void *arg, const json_t *event, struct sl_err *err)
{
    struct writing *w = arg;

    if (json_array_append(w->events, (json_t *)(uintptr_t)event))
        return sl_err_set(err, SL_NOMEM, "out of memory");
    return json_array_size(w->events) < EVENTS_A_LINE ? 0 : flush_events(w, err);
}

static bool is_empty(const json_t *note)
{
    return !*sl_json_str(note, "notes", "") && !json_array_size(json_object_get(note, "tags"));
}

static int write_note(struct writing *w, const char *id, struct sl_err *err)
{
    json_t *note = NULL;
    int rc = sl_archive_note(w->server->runs->archive, id, &note, err);

    if (!rc && !is_empty(note))
        rc = write_new(w, json_pack("{s:s, s:s, s:O, s:O}", "kind", "note", "run", id, "notes", json_object_get(note, "notes"), "tags",
                                    json_object_get(note, "tags")), err);
    json_decref(note);
    return rc;
}

static int write_run(struct writing *w, const char *id, struct sl_err *err)
{
    struct sl_archive *archive = w->server->runs->archive;
    json_t *run = NULL;
    int rc = sl_archive_show(archive, id, &run, err);

    if (rc)
        return rc;
    w->run = id;
    rc = sl_archive_each(archive, id, on_event, w, err);
    if (!rc)
        rc = flush_events(w, err);
    if (!rc)
        rc = write_new(w, json_pack("{s:s, s:O}", "kind", "run", "run", run), err);
    if (!rc)
        rc = write_note(w, id, err);
    json_decref(run);
    return rc;
}

static int write_runs(struct writing *w, struct sl_err *err)
{
    struct sl_runs *runs = w->server->runs;
    struct sl_runs_query query = {.project = w->project, .limit = PAGE};
    json_t *page = NULL, *line;
    bool more = true;
    size_t i;
    int rc = 0;

    while (!rc && more) {
        json_t *next = NULL;
        query.cursor = sl_json_str(page, "next_cursor", NULL);
        rc = sl_history_list(runs->history, &query, &next, err);
        json_decref(page);
        page = next;
        json_array_foreach(json_object_get(page, "runs"), i, line)
            if (!rc && sl_archive_has(runs->archive, sl_json_str(line, "run", "")))
                rc = write_run(w, sl_json_str(line, "run", ""), err);
        more = !rc && *sl_json_str(page, "next_cursor", "");
    }
    json_decref(page);
    return rc;
}

static int write_jobs(struct writing *w, struct sl_err *err)
{
    struct sl_jobs *jobs = w->server->runs->jobs;
    json_t *list = NULL, *line;
    size_t i;
    int rc = sl_jobs_list(jobs, &list, err);

    json_array_foreach(list, i, line) {
        const char *name = sl_json_str(line, "job", "");
        int newest = (int)sl_json_int(line, "version", -1);
        json_t *job = NULL;
        bool ours = !sl_jobs_show(jobs, name, newest, &job, err) &&
                    !strcmp(sl_json_str(job, "spec.project", "default"), w->project);
        json_decref(job);
        for (int n = 0; !rc && ours && n <= newest; n++) {
            rc = sl_jobs_show(jobs, name, n, &job, err);
            if (!rc)
                rc = write_new(w, json_pack("{s:s, s:o}", "kind", "job", "job", job), err);
        }
    }
    json_decref(list);
    return rc;
}

/* How many of the project's runs are still in Redis alone. */
static int count_live(struct writing *w, int64_t *ret_n, struct sl_err *err)
{
    char below[32] = "";
    int64_t n = 0;
    bool more = true;
    int rc = 0;

    while (!rc && more) {
        json_t *page = NULL, *line, *there;
        size_t i;
        rc = sl_queue_list(w->server->runs->queue, *below ? below : NULL, PAGE, NULL, NULL, w->project, &page, err);
        json_array_foreach(json_object_get(page, "runs"), i, line) {
            there = NULL;
            n += sl_archive_show(w->server->runs->archive, sl_json_str(line, "run", ""), &there, NULL) != 0;
            json_decref(there);
        }
        const json_t *next = json_object_get(page, "next");
        more = !rc && (json_is_integer(next) || json_is_string(next));
        if (more && json_is_integer(next))
            snprintf(below, sizeof below, "%lld", (long long)json_integer_value(next));
        else if (more)
            snprintf(below, sizeof below, "%s", json_string_value(next));
        json_decref(page);
    }
    *ret_n = n;
    return rc;
}

static int write_all(struct writing *w, struct sl_err *err)
{
    int64_t live = 0;
    int rc = sl_store_export(w->server->store, w->project, write_line, w, err);

    if (!rc && w->server->runs) {
        rc = write_jobs(w, err);
        if (!rc)
            rc = write_runs(w, err);
        if (!rc)
            rc = count_live(w, &live, err);
    }
    if (!rc)
        rc = write_new(w, json_pack("{s:s, s:s, s:s, s:I}", "kind", "end", "project", w->project, "version", SL_VERSION, "live_runs",
                                    (json_int_t)live), err);
    if (!rc && fflush(w->f))
        rc = sl_err_errno(err, "writing the export");
    return rc;
}

static void export_project(struct sl_http_req *req, void *arg)
{
    struct writing w = {.server = arg, .project = sl_http_param(req, "project")};
    struct sl_err err = SL_ERR_INIT;
    char path[SL_PATH_MAX], sha256[SL_SHA256_HEX + 1];
    int fd = -1, out = -1, rc = check_project(w.project, &err);

    if (!rc)
        rc = sl_path(path, &err, "%s/tmp/export-XXXXXX", w.server->config->data_dir);

    if (!rc && ((fd = mkostemp(path, O_CLOEXEC)) < 0 || unlink(path) || (out = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0))
        rc = sl_err_errno(&err, "making a file for the export in %s/tmp", w.server->config->data_dir);
    w.events = json_array();
    w.f = rc ? NULL : fdopen(out, "w");
    if (!rc && (!w.f || !w.events))
        rc = sl_err_set(&err, SL_NOMEM, "out of memory");
    if (!rc)
        rc = sl_sha256_init(&w.digest, &err);
    if (!rc)
        rc = write_all(&w, &err);
    if (!rc)
        sl_sha256_hex(&w.digest, sha256);
    if (w.f)
        fclose(w.f);
    else if (out >= 0)
        close(out);
    if (rc) {
        if (fd >= 0)
            close(fd);
        sl_http_reply_err(req, &err, NULL);
    } else {
        sl_http_reply_file(req, fd, w.bytes, sha256, "application/x-ndjson");
    }
    sl_sha256_release(&w.digest);
    json_decref(w.events);
}

/* ---- import ---------------------------------------------------------------------------------- */

static int import_begin(struct sl_http_req *req, void *arg, void **ret_state, struct sl_err *err)
{
    struct sl_buf *body = malloc(sizeof *body);

    (void)req;
    (void)arg;
    if (!body)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    sl_buf_init(body, SL_IMPORT_BODY_MAX);
    *ret_state = body;
    return 0;
}

static int import_data(void *state, const void *data, size_t len, struct sl_err *err)
{
    return sl_buf_add(state, data, len)
               ? sl_err_set(err, SL_SPEC, "an import of more than %u bytes: send fewer lines at a time", SL_IMPORT_BODY_MAX)
               : 0;
}

static void import_abort(void *state)
{
    sl_buf_release(state);
    free(state);
}

static int import_events(struct sl_runs *runs, const json_t *entry, bool *changed, struct sl_err *err)
{
    const char *run = sl_json_str(entry, "run", "");
    char before[64], after[64];
    json_t *there = NULL;

    if (!sl_archive_show(runs->archive, run, &there, NULL)) { /* whole already */
        json_decref(there);
        return 0;
    }
    int rc = sl_archive_last_event(runs->archive, run, before, err);
    if (!rc)
        rc = sl_archive_append(runs->archive, run, json_object_get(entry, "events"), err);
    if (!rc)
        rc = sl_archive_last_event(runs->archive, run, after, err);
    *changed = !rc && strcmp(before, after) != 0;
    return rc;
}

static int import_run(struct sl_runs *runs, const char *project, const json_t *run, bool *changed, struct sl_err *err)
{
    static const char *const ended[] = {"succeeded", "failed", "dead", "cancelled"};
    const char *id = sl_json_str(run, "run", ""), *state = sl_json_str(run, "state", "");
    bool has_ended = false;
    json_t *there = NULL;
    int64_t seq = 0;
    int rc;

    for (size_t i = 0; i < sizeof ended / sizeof *ended; i++)
        has_ended |= !strcmp(state, ended[i]);
    if (!has_ended || strcmp(sl_json_str(run, "project", ""), project) != 0 || sl_json_int(run, "seq", -1) < 0)
        return sl_err_set(err, SL_SPEC, "run %.40s of the import has not ended, or is of another project", id);
    if (!sl_queue_show(runs->queue, id, &there, NULL) || !sl_archive_show(runs->archive, id, &there, NULL)) {
        json_decref(there);
        return 0;
    }
    rc = sl_history_archive(runs->history, run, err);
    if (!rc) /* new runs are numbered above it */
        rc = sl_history_newest(runs->history, &seq, err);
    if (!rc)
        rc = sl_queue_number_above(runs->queue, seq, err);
    *changed = !rc;
    return rc;
}

/* Notes that people have written here stay. */
static int import_note(struct sl_runs *runs, const char *project, const json_t *entry, bool *changed, char **kept, struct sl_err *err)
{
    const char *id = sl_json_str(entry, "run", "");
    json_t *errors = json_array(), *tags = NULL, *run = NULL, *here = NULL, *note = NULL;
    const json_t *notes = NULL;
    int rc = sl_archive_show(runs->archive, id, &run, err);

    sl_note_read(entry, &notes, &tags, errors);
    if (!rc && (json_array_size(errors) || strcmp(sl_json_str(run, "project", ""), project) != 0))
        rc = sl_err_set(err, SL_SPEC, "the notes of run %.40s in the import are none, or of another project's run", id);
    if (!rc)
        rc = sl_archive_note(runs->archive, id, &here, err);
    bool same = !rc && json_equal(json_object_get(here, "notes"), notes) && json_equal(json_object_get(here, "tags"), tags);
    if (!rc && !same && is_empty(here)) {
        rc = sl_history_note(runs->history, id, notes, tags, &note, err);
        *changed = !rc;
    } else if (!rc && !same && asprintf(kept, "the notes and tags of run %.12s stay as they are here", id) < 0) {
        *kept = NULL;
    }
    json_decref(errors);
    json_decref(tags);
    json_decref(run);
    json_decref(here);
    json_decref(note);
    return rc;
}

static int import_entry(struct sl_server *server, const char *project, const json_t *entry, bool *changed, char **kept,
                        struct sl_err *err)
{
    const char *kind = sl_json_str(entry, "kind", "");
    bool of_runs = !strcmp(kind, "job") || !strcmp(kind, "events") || !strcmp(kind, "run") || !strcmp(kind, "note");

    *changed = false;
    if (!of_runs)
        return sl_store_import(server->store, project, entry, changed, kept, err);
    if (!server->runs)
        return sl_err_set(err, SL_SPEC, "the import has jobs or runs, and this server none: start it with --redis");
    if (!strcmp(kind, "events"))
        return import_events(server->runs, entry, changed, err);
    if (!strcmp(kind, "run"))
        return import_run(server->runs, project, json_object_get(entry, "run"), changed, err);
    if (!strcmp(kind, "note"))
        return import_note(server->runs, project, entry, changed, kept, err);
    if (strcmp(sl_json_str(entry, "job.spec.project", "default"), project) != 0)
        return sl_err_set(err, SL_SPEC, "job %.100s of the import is of another project", sl_json_str(entry, "job.job", ""));
    return sl_jobs_import(server->runs->jobs, json_object_get(entry, "job"), changed, err);
}

static void import_project(struct sl_http_req *req, void *arg)
{
    struct sl_buf *body = sl_http_state(req);
    const char *project = sl_http_param(req, "project");
    json_t *kept = json_array();
    struct sl_err err = SL_ERR_INIT;
    int64_t changed = 0, unchanged = 0;
    int rc = check_project(project, &err);

    if (!rc && !body->len)
        rc = sl_err_set(&err, SL_SPEC, "the body has no entries");
    for (char *line = body->p, *end; !rc && *line; line = end + 1) {
        json_t *entry = NULL;
        char *text = NULL;
        bool is_new = false;
        end = strchr(line, '\n');
        if (!end) {
            rc = sl_err_set(&err, SL_SPEC, "the import ends within a line");
            break;
        }
        rc = sl_json_parse(line, (size_t)(end - line), "a line of the import", &entry, &err);
        if (!rc && !strcmp(sl_json_str(entry, "kind", ""), "end")) {
            json_decref(entry);
            continue;
        }
        if (!rc)
            rc = import_entry(arg, project, entry, &is_new, &text, &err);
        changed += !rc && is_new;
        unchanged += !rc && !is_new;
        if (text && json_array_size(kept) < KEPT_MAX)
            json_array_append_new(kept, json_string(text));
        free(text);
        json_decref(entry);
    }
    import_abort(body);
    if (rc) {
        json_decref(kept);
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    sl_http_reply_json(req, 200, json_pack("{s:I, s:I, s:o}", "changed", (json_int_t)changed, "unchanged", (json_int_t)unchanged, "kept", kept));
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/projects/{project}/export", .handle = export_project},
    {.method = "POST",
     .pattern = "/api/v1/projects/{project}/import",
     .body = SL_BODY_STREAM,
     .role = SL_ROLE_ADMIN,
     .handle = import_project,
     .begin = import_begin,
     .data = import_data,
     .abort = import_abort},
};

int sl_portable_part_start(struct sl_server *server, void **ret_state, struct sl_err *err)
{
    (void)ret_state;
    return sl_http_add(server->http, routes, sizeof routes / sizeof *routes, server, err);
}

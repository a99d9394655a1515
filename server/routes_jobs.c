/* Jobs and reruns over HTTP.
 *
 *   GET  /api/v1/jobs                    {"jobs": [the newest version of each, without its spec]}
 *   GET  /api/v1/jobs/{job}?version=N    jobs.h has the form
 *   PUT  /api/v1/jobs/{job}              {"from": run, "parameters": {...} (optional)}: a new version
 *   POST /api/v1/jobs/{job}/runs         {"parameters": {"lr": 1e-3}, "queue", "priority", "resources" (instead of the
 *                                         spec's)}; Idempotency-Key; answers as POST /runs
 *   POST /api/v1/runs/{run}/rerun        the same run again, its inputs pinned; Idempotency-Key; as POST /runs
 *   GET  /api/v1/runs/{run}/compare?with=RUN    rerun.h has the form; run was first */
#include "artifacts/lineage.h"
#include "base/json.h"
#include "server/rerun.h"
#include "server/runs.h"
#include <string.h>

/* The run, and what the store knows of its result. */
static int find_made(struct sl_http_req *req, struct sl_runs *runs, const char *run, json_t **ret_run,
                     json_t **ret_facts, struct sl_err *err)
{
    int rc = sl_runs_find(runs, run, ret_run, err);

    if (rc)
        return rc;
    if (!sl_http_sees(req, sl_json_str(*ret_run, "project", "default")))
        rc = sl_err_set(err, SL_NOTFOUND, "there is no run %.40s in the projects that %s sees", run,
                        sl_http_user(req));
    else if (strcmp(sl_json_str(*ret_run, "state", ""), "succeeded") != 0)
        rc = sl_err_set(err, SL_CONFLICT, "run %s is %s: only one that has succeeded has a record of what it was made of",
                        run, sl_json_str(*ret_run, "state", "?"));
    if (!rc)
        rc = sl_store_facts(runs->server->store, run, SL_RERUN_OUTPUT, ret_facts, err);
    if (rc) {
        json_decref(*ret_run);
        *ret_run = NULL;
    }
    return rc;
}

static void refuse(struct sl_http_req *req, json_t *errors)
{
    size_t n = json_array_size(errors);

    sl_http_reply_problem(req, 422, "not valid", errors, "%zu error%s in the parameters", n, n == 1 ? "" : "s");
}

static void list_jobs(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *list;

    if (sl_jobs_list(runs->jobs, &list, &err)) {
        sl_http_reply_err(req, &err, NULL);
        return;
    }
    for (size_t i = json_array_size(list); i-- > 0;)
        if (!sl_http_sees(req, sl_json_str(json_array_get(list, i), "project", "")))
            json_array_remove(list, i);
    sl_http_reply_json(req, 200, json_pack("{s:o}", "jobs", list));
}

/* The job of the path, in the caller's projects. version -1: the newest. */
static int find_job(struct sl_http_req *req, struct sl_runs *runs, int version, json_t **ret_job, struct sl_err *err)
{
    const char *name = sl_http_param(req, "job");
    int rc = sl_jobs_show(runs->jobs, name, version, ret_job, err);

    if (rc || sl_http_sees(req, sl_job_project(*ret_job)))
        return rc;
    json_decref(*ret_job);
    *ret_job = NULL;
    return sl_err_set(err, SL_NOTFOUND, "there is no job %.150s in the projects that %s sees", name, sl_http_user(req));
}

/* Whether the caller may add a version to the job of the path, there or new. */
static int may_change_job(struct sl_http_req *req, struct sl_runs *runs, struct sl_err *err)
{
    const char *name = sl_http_param(req, "job");
    struct sl_err none = SL_ERR_INIT;
    json_t *job = NULL;
    int rc = sl_jobs_show(runs->jobs, name, -1, &job, &none);
    bool theirs = rc == 0 && !sl_http_sees(req, sl_job_project(job));

    json_decref(job);
    if (rc && rc != SL_NOTFOUND)
        return sl_err_set(err, rc, "%s", none.msg);
    /* That the name is taken must be said; whose it is must not. */
    return theirs ? sl_err_set(err, SL_DENIED, "job %.150s is not one of %s's projects: take another name", name,
                               sl_http_user(req))
                  : 0;
}

static void show_job(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_err err = SL_ERR_INIT;
    json_t *job;

    if (find_job(req, runs, (int)sl_http_query_int(req, "version", -1, -1, 999999999), &job, &err))
        sl_http_reply_err(req, &err, NULL);
    else
        sl_http_reply_json(req, 200, job);
}

/* What a job made of this run holds; errors says what is wrong with its parameters. */
static int job_content(const json_t *run, const json_t *facts, const json_t *given, json_t **ret_content,
                       json_t *errors, struct sl_err *err)
{
    json_t *spec = NULL, *parameters = NULL, *usual = NULL;
    int rc = sl_rerun_pin(json_object_get(run, "spec"), facts, &spec, err);

    if (!rc) { /* unlike a rerun's, its results are news: they move the aliases that the run's moved */
        json_t *outputs = json_object_get(spec, "outputs"), *old = json_object_get(json_object_get(run, "spec"), "outputs");
        json_object_update(outputs, old);
        usual = given ? NULL : sl_job_usual_parameters(spec);
        rc = sl_job_parameters(given ? given : usual, spec, &parameters, errors, err);
    }
    if (!rc && parameters) {
        *ret_content = json_pack("{s:O, s:O?, s:O, s:O, s:O}", "from", json_object_get(run, "run"), "code",
                                 json_object_get(facts, "code"), "inputs", json_object_get(facts, "inputs"), "spec",
                                 spec, "parameters", parameters);
        rc = *ret_content ? 0 : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    json_decref(usual);
    json_decref(parameters);
    json_decref(spec);
    return rc;
}

static void put_job(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const json_t *body = sl_http_json(req);
    json_t *run = NULL, *facts = NULL, *content = NULL, *job = NULL, *errors = json_array();
    struct sl_err err = SL_ERR_INIT;
    int rc = may_change_job(req, runs, &err);

    if (!rc)
        rc = find_made(req, runs, sl_json_str(body, "from", ""), &run, &facts, &err);
    if (!rc)
        rc = job_content(run, facts, json_object_get(body, "parameters"), &content, errors, &err);
    if (!rc && content)
        rc = sl_jobs_put(runs->jobs, sl_http_param(req, "job"), content, &job, &err);
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else if (!content)
        refuse(req, json_incref(errors));
    else
        sl_http_reply_json(req, 200, job);
    json_decref(errors);
    json_decref(content);
    json_decref(facts);
    json_decref(run);
}

/* Where and when a run is served is its enqueuer's choice; the enqueuing judges it. */
static void take_place(json_t *spec, const json_t *body)
{
    static const char *const keys[] = {"queue", "priority", "resources"};

    for (int i = 0; i < 3; i++)
        if (json_object_get(body, keys[i]))
            json_object_set(spec, keys[i], json_object_get(body, keys[i]));
}

static void run_job(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    json_t *job = NULL, *spec = NULL, *errors = json_array();
    struct sl_err err = SL_ERR_INIT;
    int rc = find_job(req, runs, (int)sl_json_int(sl_http_json(req), "version", -1), &job, &err);

    if (!rc)
        rc = sl_job_spec(job, json_object_get(sl_http_json(req), "parameters"), &spec, errors, &err);
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else if (!spec)
        refuse(req, json_incref(errors));
    else {
        take_place(spec, sl_http_json(req));
        sl_runs_enqueue(runs, req, spec);
    }
    json_decref(errors);
    json_decref(spec);
    json_decref(job);
}

static void rerun(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *id = sl_http_param(req, "run");
    json_t *run = NULL, *facts = NULL, *spec = NULL;
    struct sl_err err = SL_ERR_INIT;
    int rc = find_made(req, runs, id, &run, &facts, &err);

    if (!rc)
        rc = sl_rerun_pin(json_object_get(run, "spec"), facts, &spec, &err);
    if (!rc && json_object_set_new(spec, "origin", json_pack("{s:s}", "rerun_of", id)))
        rc = sl_err_set(&err, SL_NOMEM, "out of memory");
    if (rc)
        sl_http_reply_err(req, &err, NULL);
    else
        sl_runs_enqueue(runs, req, spec);
    json_decref(spec);
    json_decref(facts);
    json_decref(run);
}

static int find_result(struct sl_http_req *req, struct sl_runs *runs, const char *id, json_t **ret_facts, json_t **ret_record,
                       struct sl_err *err)
{
    json_t *run = NULL;
    int rc = find_made(req, runs, id, &run, ret_facts, err);

    json_decref(run);
    return rc ? rc : sl_store_published(runs->server->store, id, SL_RERUN_OUTPUT, ret_record, err);
}

static void compare(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    const char *id = sl_http_param(req, "run"), *other = sl_http_query(req, "with");
    json_t *facts[2] = {NULL, NULL}, *record[2] = {NULL, NULL}, *found;
    struct sl_err err = SL_ERR_INIT;
    int rc = find_result(req, runs, id, &facts[0], &record[0], &err);

    if (!rc)
        rc = find_result(req, runs, other ? other : "", &facts[1], &record[1], &err);
    if (rc) {
        sl_http_reply_err(req, &err, NULL);
    } else {
        found = sl_rerun_compare(facts[0], record[0], facts[1], record[1]);
        json_object_set_new(found, "run", json_string(id));
        json_object_set_new(found, "with", json_string(other));
        sl_http_reply_json(req, 200, found);
    }
    for (int i = 0; i < 2; i++) {
        json_decref(facts[i]);
        json_decref(record[i]);
    }
}

static const struct sl_route routes[] = {
    {.method = "GET", .pattern = "/api/v1/jobs", .scope = SL_SCOPE_HANDLER, .handle = list_jobs},
    {.method = "GET", .pattern = "/api/v1/jobs/{job}", .scope = SL_SCOPE_HANDLER, .handle = show_job},
    {.method = "PUT", .pattern = "/api/v1/jobs/{job}", .scope = SL_SCOPE_HANDLER, .body = SL_BODY_JSON, .handle = put_job},
    {.method = "POST", .pattern = "/api/v1/jobs/{job}/runs", .scope = SL_SCOPE_HANDLER, .body = SL_BODY_JSON, .handle = run_job},
    {.method = "POST", .pattern = "/api/v1/runs/{run}/rerun", .handle = rerun},
    {.method = "GET", .pattern = "/api/v1/runs/{run}/compare", .handle = compare},
};

int sl_jobs_routes(struct sl_runs *runs, struct sl_err *err)
{
    return sl_http_add(runs->server->http, routes, sizeof routes / sizeof *routes, runs, err);
}

/* Publishing a run's result exactly once, whatever is killed when:
 *
 *   1. the agent has uploaded blobs and manifests (invisible so far) and sends
 *      {"lease", "metrics", "outputs": [{"output", "artifact", "manifest", "aliases"}],
 *       "facts": artifacts/lineage.h (optional), "register": a model that the first output becomes a candidate of
 *       (optional)}
 *   2. manifests are verified and pinned, version numbers reserved
 *   3. one script in Redis: lease held and not cancelled -> the run has succeeded with these
 * outputs, outbox entry
 *   4. the store commits each version under its (run, output) marker, durably
 *      (and what is to be copied to a bucket is noted: server/copies.h)
 *   5. the outbox entry is closed with what the versions became; then the answer
 *
 * After a crash between 3 and 5 the outbox is replayed from 4; a repeated request gets the first
 * one's outputs. */
#include "artifacts/lineage.h"
#include "artifacts/names.h"
#include "artifacts/registry.h"
#include "base/json.h"
#include "base/log.h"
#include "server/copies.h"
#include "server/runs.h"
#include <stdio.h>
#include <string.h>

static const char *text_of(const json_t *output, const char *key)
{
    return sl_json_str(output, key, "");
}

static int check_request(const json_t *body, struct sl_err *err)
{
    const json_t *outputs = json_object_get(body, "outputs"), *o;
    const char *lease = sl_json_str(body, "lease", "");
    const json_t *facts = json_object_get(body, "facts"), *model = json_object_get(body, "register");
    size_t i;

    if (json_is_object(facts) && sl_facts_check(facts, err))
        return SL_SPEC;
    if (model && !sl_name_valid(json_string_value(model)))
        return sl_err_set(err, SL_SPEC, "register: expected the name of a registered model");
    if (strlen(lease) != SL_ID_HEX)
        return sl_err_set(err, SL_SPEC, "lease: expected the lease id, %d hex digits", SL_ID_HEX);
    if (!json_is_array(outputs) || !json_array_size(outputs) ||
        json_array_size(outputs) > SL_PUBLISH_OUTPUTS_MAX)
        return sl_err_set(err, SL_SPEC, "outputs: expected a list of 1 to %d",
                          SL_PUBLISH_OUTPUTS_MAX);
    json_array_foreach(outputs, i, o) {
        const json_t *aliases = json_object_get(o, "aliases"), *alias;
        size_t k;
        if (!sl_name_valid(text_of(o, "output")) || !sl_name_valid(text_of(o, "artifact")) ||
            !sl_sha256_valid(text_of(o, "manifest")))
            return sl_err_set(
                err, SL_SPEC,
                "outputs[%zu]: expected output, artifact (names) and manifest (sha256)", i);
        if (aliases && !json_is_array(aliases))
            return sl_err_set(err, SL_SPEC, "outputs[%zu].aliases: expected a list of names", i);
        json_array_foreach(aliases, k, alias)
            if (!sl_alias_valid(json_string_value(alias)))
                return sl_err_set(err, SL_SPEC,
                                  "outputs[%zu].aliases[%zu]: not the name of an alias", i, k);
    }
    return 0;
}

/* Whose the versions will be: who enqueued the run. Left out when Redis does not say. */
static void sign(struct sl_runs *runs, const char *run, json_t *reserved)
{
    json_t *shown = NULL, *o;
    size_t i;

    if (sl_queue_show(runs->queue, run, &shown, NULL))
        return;
    json_array_foreach(reserved, i, o) {
        json_object_set(o, "created_by", json_object_get(shown, "created_by"));
        json_object_set(o, "project", json_object_get(shown, "project"));
        if (sl_json_str(shown, "spec.outputs.copy_to", NULL))
            json_object_set_new(o, "copy_to", json_string(sl_json_str(shown, "spec.outputs.copy_to", "")));
    }
    json_decref(shown);
}

/* Step 2. `reserved` gets the outputs with their numbers, as far as it came. */
static int reserve(struct sl_store *store, const char *run, const char *lease, const json_t *body,
                   json_t *reserved, json_t **ret_problems,
                   struct sl_err *err)
{
    const json_t *outputs = json_object_get(body, "outputs"), *o;
    json_t *facts = json_object_get(body, "facts"), *model = json_object_get(body, "register");
    size_t i;

    json_array_foreach(outputs, i, o) {
        const char *manifest = text_of(o, "manifest");
        json_t *found = NULL, *aliases = json_object_get(o, "aliases");
        char version[32];
        int number, rc = sl_store_pin(store, manifest, lease, err);

        if (!rc)
            rc = sl_store_manifest(store, manifest, &found, ret_problems, err);
        json_decref(found);
        if (!rc)
            rc = sl_store_allocate(store, text_of(o, "artifact"), manifest, run,
                                   text_of(o, "output"), aliases, &number, err);
        if (rc) {
            sl_store_unpin(store, manifest, lease, NULL);
            return sl_err_wrap(err, rc, "outputs[%zu]", i);
        }
        snprintf(version, sizeof version, "v%d", number);
        if (json_array_append_new(
                reserved, json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:o, s:O*, s:O*}", "pin", lease, "output",
                                    text_of(o, "output"), "artifact", text_of(o, "artifact"),
                                    "version", version, "number", number, "manifest", manifest,
                                    "aliases", aliases ? json_incref(aliases) : json_array(), "facts",
                                    json_is_object(facts) ? facts : NULL, "register", i ? NULL : model)))
            return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    return 0;
}

static void unreserve(struct sl_store *store, const json_t *reserved)
{
    const json_t *o;
    size_t i;

    json_array_foreach(reserved, i, o)
        sl_store_release(store, text_of(o, "artifact"), (int)sl_json_int(o, "number", -1));
}

/* Pins belong to a lease: a refused owner must not take away those of the one that publishes the
 * same bytes. */
static void unpin(struct sl_store *store, const json_t *outputs)
{
    const json_t *o;
    size_t i;

    json_array_foreach(outputs, i, o)
        sl_store_unpin(store, text_of(o, "manifest"), text_of(o, "pin"), NULL);
}

/* The version becomes the model's candidate; on failure the record is released. */
static int registered(struct sl_store *store, const char *run, const json_t *output, json_t **record,
                      struct sl_err *err)
{
    const struct sl_registry_link link = {.artifact = sl_json_str(*record, "name", ""),
                                          .version = sl_json_str(*record, "version", ""),
                                          .stage = SL_STAGE_CANDIDATE,
                                          .run = run,
                                          .by = sl_json_str(output, "created_by", NULL),
                                          .project = sl_json_str(output, "project", NULL)};
    int rc = sl_registry_link(store, text_of(output, "register"), &link, NULL, err);

    if (rc == SL_CONFLICT) { /* a full registry: the result itself was promised */
        sl_log(SL_ERROR, run, "%s", err->msg);
        sl_err_clear(err);
        rc = 0;
    }
    if (rc) {
        json_decref(*record);
        *record = NULL;
    }
    return rc;
}

/* Steps 4 and 5. *ret_outputs: the outputs with the versions that they became. */
static int settle(struct sl_runs *runs, const char *run, const json_t *outputs,
                  json_t **ret_outputs, struct sl_err *err)
{
    struct sl_store *store = runs->server->store;
    json_t *final = json_array(), *record, *o;
    size_t i;
    int rc = 0;

    json_array_foreach((json_t *)(uintptr_t)outputs, i, o) {
        const struct sl_commit c = {.name = text_of(o, "artifact"),
                                    .manifest = text_of(o, "manifest"),
                                    .number = (int)sl_json_int(o, "number", -1),
                                    .run = run,
                                    .output = text_of(o, "output"),
                                    .created_by = text_of(o, "created_by"),
                                    .project = text_of(o, "project"),
                                    .aliases = json_object_get(o, "aliases"),
                                    .facts = json_object_get(o, "facts")};
        json_t *became = json_copy(o);
        json_object_del(became, "pin");
        json_object_del(became, "created_by");
        json_object_del(became, "project");
        json_object_del(became, "facts"); /* the store has them now: Redis need not keep them */
        rc = sl_store_commit(store, &c, &record, NULL, err);
        if (!rc && json_object_get(o, "copy_to") &&
            (rc = sl_copies_add(runs->server->config, run, c.output, record, text_of(o, "copy_to"), err)))
            json_decref(record);
        if (!rc && json_object_get(o, "register"))
            rc = registered(store, run, o, &record, err);
        if (!rc) {
            json_object_set(became, "version", json_object_get(record, "version"));
            json_object_set(became, "number", json_object_get(record, "number"));
            json_object_set(became, "bytes", json_object_get(record, "bytes"));
            /* Equal content of another run: no new version, and no more storage. */
            if (strcmp(sl_json_str(record, "made_by.run", ""), run) != 0 ||
                strcmp(sl_json_str(record, "made_by.output", ""), c.output) != 0)
                json_object_set_new(became, "shared", json_true());
            json_decref(record);
        }
        json_array_append_new(final, became);
        if (rc)
            break;
    }
    if (!rc)
        rc = sl_queue_ack(runs->queue, run, final, err);
    if (!rc)
        unpin(store, outputs);
    if (rc)
        json_decref(final);
    else
        *ret_outputs = final;
    return rc;
}

void sl_publish_handler(struct sl_http_req *req, void *arg)
{
    struct sl_runs *runs = arg;
    struct sl_store *store = runs->server->store;
    const char *run = sl_http_param(req, "run");
    const json_t *body = sl_http_json(req), *metrics = json_object_get(body, "metrics");
    const char *lease = sl_json_str(body, "lease", "");
    json_t *reserved = json_array(), *hold = NULL, *final = NULL, *problems = NULL;
    struct sl_err err = SL_ERR_INIT;
    bool is_new = false;
    int rc = check_request(body, &err);

    if (!rc)
        rc =
            reserve(store, run, lease, body, reserved, &problems, &err);
    if (!rc)
        sign(runs, run, reserved);
    if (!rc)
        rc = sl_queue_finish(runs->queue, run, lease, reserved, metrics, &hold, &is_new, &err);
    if (rc || !is_new)
        unreserve(store, reserved);
    /* After SL_RETRY the script may have run: the pins stay until the next request or the replay
     * knows. */
    if (rc && rc != SL_RETRY)
        unpin(store, reserved);
    if (!rc)
        rc = settle(runs, run, hold, &final, &err);
    if (!rc && !is_new) /* the first request's pins were settle's, these are this one's */
        unpin(store, reserved);
    if (rc)
        sl_http_reply_err(req, &err, problems);
    else
        sl_http_reply_json(
            req, 200,
            json_pack("{s:s, s:s, s:O}", "run", run, "state", "succeeded", "outputs", final));
    json_decref(reserved);
    json_decref(hold);
    json_decref(final);
}

int sl_publish_replay(struct sl_runs *runs, int *ret_replayed, struct sl_err *err)
{
    json_t *outbox, *outputs, *final;
    const char *run;
    int rc = sl_queue_outbox(runs->queue, &outbox, err), n = 0;

    if (rc)
        return rc;
    json_object_foreach(outbox, run, outputs) {
        int one = settle(runs, run, outputs, &final,
                         err); /* the first error is told, the others still tried */
        if (!one) {
            json_decref(final);
            n++;
        } else if (!rc) {
            rc = one;
        }
    }
    json_decref(outbox);
    if (!rc && ret_replayed)
        *ret_replayed = n;
    return rc;
}

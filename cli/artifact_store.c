#include "cli/artifact_store.h"
#include "artifacts/manifest.h"
#include "artifacts/names.h"
#include "base/json.h"
#include <stdio.h>
#include <string.h>

void artifact_bytes(int64_t bytes, char ret_text[24])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 999.95 && unit < 4; unit++)
        value /= 1000;
    snprintf(ret_text, 24, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

void artifact_print_json(const json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2));
    putchar('\n');
}

int artifact_record(struct sl_api *api, const char *text, struct sl_ref *ret_ref, json_t **ret_record,
                    struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64];
    json_t *record = NULL;
    int rc = sl_ref_parse(text, ret_ref, err);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/%s", ret_ref->name, ret_ref->version);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &record, err);
    if (rc == 0)
        rc = sl_ref_check_project(ret_ref, sl_json_str(record, "project", NULL), err);
    if (rc == 0)
        rc = sl_manifest_check(record, NULL, err);
    if (rc == 0 && ret_ref->file[0] && !sl_manifest_file(record, ret_ref->file))
        rc = sl_err_set(err, SL_NOTFOUND, "there is no file %s in %s:%s", ret_ref->file, ret_ref->name,
                        sl_json_str(record, "version", "?"));
    if (rc)
        json_decref(record);
    else
        *ret_record = record;
    return rc;
}

int artifact_rm(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64], bytes[24];
    struct sl_ref ref;
    json_t *gone = NULL;
    (void)argc;
    int rc = sl_ref_parse(argv[0], &ref, err);
    if (rc == 0 && (ref.file[0] || !strchr(argv[0], ':')))
        rc = sl_err_set(err, SL_SPEC, "rm takes a version: %s:v0, say; its number is never used again",
                        ref.name);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/versions/%s", ref.name, ref.version);
    rc = sl_api_call(api, "DELETE", path, NULL, NULL, &gone, err);
    artifact_bytes(sl_json_int(gone, "bytes", 0), bytes);
    if (rc == 0 && o->json)
        artifact_print_json(gone);
    else if (rc == 0)
        printf("deleted %s:%s, %s\n", ref.name, sl_json_str(gone, "version", "?"), bytes);
    json_decref(gone);
    return rc;
}

int artifact_unalias(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                     struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64];
    (void)argc;
    (void)o;
    if (!sl_name_valid(argv[0]) || !sl_alias_valid(argv[1]))
        return sl_err_set(err, SL_SPEC, "`%s %s` is not an artifact's name and an alias", argv[0],
                          argv[1]);
    snprintf(path, sizeof path, "/api/v1/artifacts/%s/aliases/%s", argv[0], argv[1]);
    return sl_api_call(api, "DELETE", path, NULL, NULL, NULL, err);
}

/* Starts a task of the server and waits for its end. */
static int run_task(struct sl_api *api, const char *what, json_t *body, json_t **ret_report,
                    struct sl_err *err)
{
    char path[96];
    json_t *reply = NULL, *task = NULL;
    snprintf(path, sizeof path, "/api/v1/store/%s", what);
    int rc = body ? sl_api_call(api, "POST", path, NULL, body, &reply, err)
                  : sl_err_set(err, SL_NOMEM, "out of memory");
    json_decref(body);
    snprintf(path, sizeof path, "/api/v1/store/tasks/%.40s", sl_json_str(reply, "task", ""));
    json_decref(reply);
    const char *state = "";
    while (rc == 0 && strcmp(state, "done") != 0 && strcmp(state, "failed") != 0) {
        json_decref(task);
        task = NULL;
        rc = sl_api_call(api, "GET", path, NULL, NULL, &task, err);
        state = sl_json_str(task, "state", "");
    }
    if (rc == 0 && strcmp(state, "failed") == 0)
        rc = sl_err_set(err, SL_IO, "%s", sl_json_str(task, "error", "it failed"));
    if (rc == 0)
        *ret_report = json_incref(json_object_get(task, "report"));
    json_decref(task);
    return rc;
}

int artifact_gc(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                struct sl_err *err)
{
    json_t *report = NULL;
    char removed[24], left[24];
    (void)argc;
    (void)argv;
    int rc = run_task(api, "collections",
                      o->grace_s >= 0 ? json_pack("{s:i}", "grace_s", o->grace_s) : json_object(),
                      &report, err);
    artifact_bytes(sl_json_int(report, "removed_bytes", 0), removed);
    artifact_bytes(sl_json_int(report, "bytes", 0), left);
    if (rc == 0 && o->json)
        artifact_print_json(report);
    else if (rc == 0)
        printf("removed %lld files of %s that no version uses; %lld of %s stay\n",
               (long long)sl_json_int(report, "removed_blobs", 0), removed,
               (long long)sl_json_int(report, "blobs", 0), left);
    json_decref(report);
    return rc;
}

int artifact_verify(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                    struct sl_err *err)
{
    json_t *report = NULL, *problem;
    char bytes[24];
    size_t i;
    (void)argc;
    (void)argv;
    int rc = run_task(api, "verifications", json_pack("{s:b}", "hash", (int)o->hash), &report, err);
    if (rc)
        return rc;
    long long problems = (long long)sl_json_int(report, "problems_total", 0);
    artifact_bytes(sl_json_int(report, "bytes", 0), bytes);
    if (o->json) {
        artifact_print_json(report);
    } else {
        json_array_foreach(json_object_get(report, "problems"), i, problem)
            printf("%s\n", json_string_value(problem));
        printf("%lld versions, %lld files of %s%s: %lld problems\n",
               (long long)sl_json_int(report, "versions", 0),
               (long long)sl_json_int(report, "blobs", 0), bytes,
               o->hash ? ", every byte read" : "", problems);
    }
    json_decref(report);
    return problems ? sl_err_set(err, SL_DATA, "the store has %lld problems", problems) : 0;
}

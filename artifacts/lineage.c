#include "artifacts/lineage.h"
#include "artifacts/store_priv.h"
#include "base/json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- facts ----------------------------------------------------------------------------------- */

int sl_facts_check(const json_t *facts, struct sl_err *err)
{
    const json_t *inputs = json_object_get(facts, "inputs"), *in;
    size_t i;
    char *text = json_is_object(facts) ? sl_json_dump(facts) : NULL;
    int rc = 0;
    if (!text || strlen(text) > SL_FACTS_MAX_BYTES || (inputs && !json_is_array(inputs)))
        rc = sl_err_set(err, SL_SPEC, "facts: expected an object of at most %u bytes, its inputs a list",
                        SL_FACTS_MAX_BYTES);
    json_array_foreach((json_t *)(uintptr_t)inputs, i, in) {
        const char *name = sl_json_str(in, "name", NULL), *version = sl_json_str(in, "version", NULL);
        if (rc == 0 && (!json_is_string(json_object_get(in, "role")) ||
                        !sl_sha256_valid(sl_json_str(in, "sha256", "")) || (!name != !version) ||
                        (name && (!sl_name_valid(name) || sl_version_number(version) < 0))))
            rc = sl_err_set(err, SL_SPEC,
                            "facts.inputs[%zu]: expected a role, a sha256 and, of an artifact, its name and "
                            "version",
                            i);
    }
    free(text);
    return rc;
}

/* The mutex is held. */
static int read_marker(const struct sl_store *store, const char *run, const char *output,
                       json_t **ret_marker, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    int rc = sl_path(path, err, "%s/markers/%s/%s.json", store->dir, run, output);
    if (rc == 0 && !sl_file_exists(path))
        rc = sl_err_set(err, SL_NOTFOUND, "run %s has not published its output %s", run, output);
    return rc ? rc : sl_json_read(path, SL_RECORD_MAX_BYTES, ret_marker, err);
}

int sl_store_facts(struct sl_store *store, const char *run, const char *output, json_t **ret_facts,
                   struct sl_err *err)
{
    json_t *marker = NULL, *facts;
    char version[16];
    int rc = sl_store_check_name("run", run, err);
    if (rc == 0)
        rc = sl_store_check_name("output", output, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&store->mutex);
    rc = read_marker(store, run, output, &marker, err);
    pthread_mutex_unlock(&store->mutex);
    if (rc)
        return rc;
    facts = json_object_get(marker, "facts") ? json_deep_copy(json_object_get(marker, "facts"))
                                             : json_object();
    snprintf(version, sizeof version, "v%d", (int)sl_json_int(marker, "number", 0));
    if (!facts || json_object_set(facts, "artifact", json_object_get(marker, "name")) ||
        json_object_set_new(facts, "version", json_string(version)))
        rc = sl_store_nomem(err);
    json_decref(marker);
    if (rc)
        json_decref(facts);
    else
        *ret_facts = facts;
    return rc;
}

/* ---- the index: {"made": {"name:v3": ["run/output"]}, "used": the same} -------------------------- */

static int add(json_t *index, const char *which, const char *version, const char *marker)
{
    json_t *all = json_object_get(index, which), *list = json_object_get(all, version);
    size_t i;
    json_t *there;
    if (!list) {
        list = json_array();
        if (json_object_set_new(all, version, list))
            return SL_NOMEM;
    }
    json_array_foreach(list, i, there)
        if (strcmp(json_string_value(there), marker) == 0)
            return 0;
    return json_array_append_new(list, json_string(marker)) ? SL_NOMEM : 0;
}

static void version_id(char ret_id[SL_NAME_MAX + 20], const char *name, int number)
{
    snprintf(ret_id, SL_NAME_MAX + 20, "%.*s:v%d", SL_NAME_MAX, name, number);
}

static int index_marker(json_t *index, const char *run, const char *output, const json_t *marker)
{
    char id[SL_NAME_MAX + 20], key[2 * SL_NAME_MAX + 2];
    size_t i;
    json_t *in;
    snprintf(key, sizeof key, "%s/%s", run, output);
    version_id(id, sl_json_str(marker, "name", ""), (int)sl_json_int(marker, "number", 0));
    int rc = add(index, "made", id, key);
    json_array_foreach((json_t *)(uintptr_t)sl_json_get(marker, "facts.inputs"), i, in) {
        if (!sl_json_str(in, "name", NULL))
            continue;
        version_id(id, sl_json_str(in, "name", ""), sl_version_number(sl_json_str(in, "version", "")));
        rc = rc ? rc : add(index, "used", id, key);
    }
    return rc;
}

void sl_lineage_note(struct sl_store *store, const char *run, const char *output, const json_t *marker)
{
    if (store->lineage && index_marker(store->lineage, run, output, marker)) {
        json_decref(store->lineage); /* out of memory: made anew when it is asked for */
        store->lineage = NULL;
    }
}

struct indexing {
    const struct sl_store *store;
    json_t *index;
    const char *run;
};

static int index_output(void *arg, const char *path, const char *name, struct sl_err *err)
{
    const struct indexing *i = arg;
    char output[SL_NAME_MAX + 1];
    size_t len = strlen(name);
    json_t *marker = NULL;
    (void)path;
    if (len <= 5 || len - 5 >= sizeof output || strcmp(name + len - 5, ".json") != 0)
        return 0;
    memcpy(output, name, len - 5);
    output[len - 5] = 0;
    if (!sl_name_valid(output))
        return 0;
    int rc = read_marker(i->store, i->run, output, &marker, err);
    if (rc == 0 && index_marker(i->index, i->run, output, marker))
        rc = sl_store_nomem(err);
    json_decref(marker);
    return rc;
}

static int index_run(void *arg, const char *path, const char *run, struct sl_err *err)
{
    struct indexing *i = arg;
    i->run = run;
    return sl_name_valid(run) ? sl_dir_each(path, index_output, i, err) : 0;
}

/* The mutex is held. */
static int make_index(struct sl_store *store, struct sl_err *err)
{
    struct indexing i = {.store = store};
    char path[SL_PATH_MAX];
    if (store->lineage)
        return 0;
    int rc = sl_path(path, err, "%s/markers", store->dir);
    if (rc)
        return rc;
    i.index = json_pack("{s:{}, s:{}}", "made", "used");
    rc = i.index ? sl_dir_each(path, index_run, &i, err) : sl_store_nomem(err);
    if (rc)
        json_decref(i.index);
    else
        store->lineage = i.index;
    return rc;
}

/* ---- the graph ------------------------------------------------------------------------------- */

/* One of the two directions: from a version to the runs around it, and on to their versions. */
struct walk {
    struct sl_store *store;
    json_t *nodes, *edges, *seen; /* seen: ids of nodes, and "from to role" of edges */
    json_t *todo;                 /* versions, as {"name", "number"} */
    bool truncated;
};

/* False: there is no more room, or (ret_new) it is there already. */
static bool add_node(struct walk *w, const char *id, json_t *node_stolen, bool *ret_new)
{
    bool there = json_object_get(w->seen, id) != NULL;
    bool room = there || json_array_size(w->nodes) < SL_LINEAGE_NODES_MAX;
    *ret_new = !there && room;
    w->truncated = w->truncated || !room;
    if (*ret_new) {
        json_object_set_new(w->seen, id, json_true());
        json_object_set_new(node_stolen, "id", json_string(id));
        json_array_append(w->nodes, node_stolen);
    }
    json_decref(node_stolen);
    return room;
}

static void add_edge(struct walk *w, const char *from, const char *to, const char *role)
{
    char key[4 * SL_NAME_MAX + 200];
    snprintf(key, sizeof key, "%s %s %.128s", from, to, role);
    if (json_object_get(w->seen, key))
        return;
    json_object_set_new(w->seen, key, json_true());
    json_array_append_new(w->edges, json_pack("{s:s, s:s, s:s}", "from", from, "to", to, "role", role));
}

#define NODE_ID_MAX (SL_NAME_MAX + 40)

/* A version's node; one that is new is looked at in its turn. */
static bool add_version(struct walk *w, const char *name, int number, char ret_id[NODE_ID_MAX])
{
    char label[SL_NAME_MAX + 20], path[SL_PATH_MAX];
    bool fresh, gone;
    version_id(label, name, number);
    snprintf(ret_id, NODE_ID_MAX, "artifact:%s", label);
    gone = sl_store_record_path(w->store, name, number, path, NULL) || !sl_file_exists(path);
    json_t *node = json_pack("{s:s, s:s, s:s, s:s}", "kind", "artifact", "label", label, "name", name,
                             "version", strrchr(label, ':') + 1);
    if (gone)
        json_object_set_new(node, "deleted", json_true());
    if (!add_node(w, ret_id, node, &fresh))
        return false;
    if (fresh)
        json_array_append_new(w->todo, json_pack("{s:s, s:i}", "name", name, "number", number));
    return true;
}

static bool add_run(struct walk *w, const char *run, const json_t *facts, char ret_id[NODE_ID_MAX])
{
    bool fresh;
    snprintf(ret_id, NODE_ID_MAX, "run:%.*s", SL_NAME_MAX, run);
    return add_node(w, ret_id,
                    json_pack("{s:s, s:s, s:s, s:O*, s:O*, s:O*, s:O*, s:O*}", "kind", "run", "label",
                              sl_json_str(facts, "name", run), "run", run, "project",
                              json_object_get(facts, "project"), "spec", json_object_get(facts, "spec"),
                              "code", json_object_get(facts, "code"), "origin",
                              json_object_get(facts, "origin"), "fingerprint",
                              json_object_get(facts, "fingerprint")),
                    &fresh);
}

/* What the store does not hold: a URL, a file of an agent's machine. */
static bool add_source(struct walk *w, const json_t *in, char ret_id[NODE_ID_MAX])
{
    bool fresh;
    snprintf(ret_id, NODE_ID_MAX, "source:%.64s", sl_json_str(in, "sha256", ""));
    return add_node(w, ret_id,
                    json_pack("{s:s, s:s, s:s}", "kind", "source", "label", sl_json_str(in, "ref", ""),
                              "sha256", sl_json_str(in, "sha256", "")),
                    &fresh);
}

static void walk_inputs(struct walk *w, const char *run_id, const json_t *facts)
{
    char id[NODE_ID_MAX];
    size_t i;
    json_t *in;
    json_array_foreach(json_object_get(facts, "inputs"), i, in) {
        const char *name = sl_json_str(in, "name", NULL);
        int number = sl_version_number(sl_json_str(in, "version", ""));
        if (name && number >= 0 ? add_version(w, name, number, id) : add_source(w, in, id))
            add_edge(w, id, run_id, sl_json_str(in, "role", "input"));
    }
}

/* Runs that made it with what they used (up), or used it with what they made. The mutex is held. */
static int walk_version(struct walk *w, const char *name, int number, bool up, struct sl_err *err)
{
    char id[SL_NAME_MAX + 20], run_id[NODE_ID_MAX], other[NODE_ID_MAX];
    version_id(id, name, number);
    json_t *markers = json_object_get(json_object_get(w->store->lineage, up ? "made" : "used"), id), *m;
    size_t i;
    json_array_foreach(markers, i, m) {
        const char *key = json_string_value(m), *output = strchr(key, '/') + 1;
        char run[SL_NAME_MAX + 1];
        json_t *marker = NULL;
        snprintf(run, sizeof run, "%.*s", (int)(output - key - 1), key);
        int rc = read_marker(w->store, run, output, &marker, err);
        if (rc)
            return rc;
        const json_t *facts = json_object_get(marker, "facts");
        if (add_run(w, run, facts, run_id)) {
            if (add_version(w, sl_json_str(marker, "name", ""), (int)sl_json_int(marker, "number", 0), other))
                add_edge(w, run_id, other, output);
            if (up) {
                walk_inputs(w, run_id, facts);
            } else if (add_version(w, name, number, other)) {
                size_t k;
                json_t *in;
                json_array_foreach(json_object_get(facts, "inputs"), k, in)
                    if (strcmp(sl_json_str(in, "name", ""), name) == 0 &&
                        sl_version_number(sl_json_str(in, "version", "")) == number)
                        add_edge(w, other, run_id, sl_json_str(in, "role", "input"));
            }
        }
        json_decref(marker);
    }
    return 0;
}

static int walk_all(struct walk *w, const char *name, int number, bool up, struct sl_err *err)
{
    json_t *first = json_pack("{s:s, s:i}", "name", name, "number", number);
    int rc = json_array_append_new(w->todo, first) ? sl_store_nomem(err) : 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(w->todo); i++) {
        const json_t *next = json_array_get(w->todo, i);
        rc = walk_version(w, sl_json_str(next, "name", ""), (int)sl_json_int(next, "number", 0), up, err);
    }
    json_array_clear(w->todo);
    return rc;
}

int sl_store_lineage(struct sl_store *store, const char *name, const char *version,
                     json_t **ret_graph, struct sl_err *err)
{
    json_t *record = NULL;
    char root[NODE_ID_MAX];
    int rc = sl_store_resolve(store, name, version, &record, err);
    if (rc)
        return rc;
    struct walk w = {store, json_array(), json_array(), json_object(), json_array(), false};
    const char *resolved = sl_json_str(record, "name", name);
    int number = (int)sl_json_int(record, "number", 0);
    pthread_mutex_lock(&store->mutex);
    rc = w.nodes && w.edges && w.seen && w.todo ? make_index(store, err) : sl_store_nomem(err);
    if (rc == 0) {
        add_version(&w, resolved, number, root);
        json_array_clear(w.todo);
        rc = walk_all(&w, resolved, number, true, err);
    }
    if (rc == 0)
        rc = walk_all(&w, resolved, number, false, err);
    pthread_mutex_unlock(&store->mutex);
    json_t *graph = rc ? NULL
                       : json_pack("{s:s, s:O, s:O}", "root", root, "nodes", w.nodes, "edges", w.edges);
    if (rc == 0 && !graph)
        rc = sl_store_nomem(err);
    if (rc == 0 && w.truncated)
        json_object_set_new(graph, "truncated", json_true());
    if (rc == 0)
        *ret_graph = graph;
    json_decref(w.todo);
    json_decref(w.seen);
    json_decref(w.edges);
    json_decref(w.nodes);
    json_decref(record);
    return rc;
}

/* `softlaunch artifact lineage`: the graph of one version as two trees. */
#include "artifacts/names.h"
#include "base/json.h"
#include "cli/registry.h"
#include "cli/runs_common.h"
#include <stdio.h>
#include <string.h>

#define DEPTH_MAX 32 /* of a printed tree */

static const json_t *node_of(const json_t *graph, const char *id)
{
    size_t i;
    json_t *node;
    json_array_foreach(json_object_get(graph, "nodes"), i, node)
        if (!strcmp(sl_json_str(node, "id", ""), id))
            return node;
    return NULL;
}

static void print_node(const json_t *node, const char *role, int depth)
{
    const char *kind = sl_json_str(node, "kind", "");

    printf("%*s%-10s ", 2 * depth, "", role);
    if (!strcmp(kind, "run"))
        printf("run %.12s %s, spec %.12s, softlaunch %s\n", sl_json_str(node, "run", "?"),
               sl_json_str(node, "label", ""), sl_json_str(node, "spec", "?"),
               sl_json_str(node, "code", "?"));
    else if (!strcmp(kind, "source"))
        printf("%s (sha256 %.12s)\n", sl_json_str(node, "label", "?"), sl_json_str(node, "sha256", "?"));
    else
        printf("%s%s\n", sl_json_str(node, "label", "?"),
               sl_json_bool(node, "deleted", false) ? " (deleted)" : "");
}

/* What leads to `id` (up), or what it leads to. An edge of a node that was told is not told again. */
static void print_around(const json_t *graph, const char *id, bool up, int depth, json_t *told)
{
    const char *here = up ? "to" : "from", *there = up ? "from" : "to";
    size_t i;
    json_t *edge;

    if (depth > DEPTH_MAX || json_object_get(told, id))
        return;
    json_object_set_new(told, id, json_true());
    json_array_foreach(json_object_get(graph, "edges"), i, edge)
    {
        const char *other = sl_json_str(edge, there, "");
        const json_t *node = node_of(graph, other);
        if (strcmp(sl_json_str(edge, here, ""), id) != 0 || !node)
            continue;
        print_node(node, sl_json_str(edge, "role", ""), depth);
        print_around(graph, other, up, depth + 1, told);
    }
}

static void print_graph(const json_t *graph)
{
    const char *root = sl_json_str(graph, "root", "");
    json_t *up = json_object(), *down = json_object();

    printf("%s\n", sl_json_str(node_of(graph, root), "label", root));
    puts("made by");
    print_around(graph, root, true, 1, up);
    puts("used by");
    print_around(graph, root, false, 1, down);
    if (sl_json_bool(graph, "truncated", false))
        puts("... and more");
    json_decref(up);
    json_decref(down);
}

int cli_lineage(struct sl_api *api, const char *text, bool json, struct sl_err *err)
{
    char path[2 * SL_NAME_MAX + 64];
    struct sl_ref ref;
    json_t *graph = NULL;
    int rc = sl_ref_parse(text, &ref, err);

    if (rc)
        return rc;
    snprintf(path, sizeof path, "/api/v1/lineage/%s/%s", ref.name, ref.version);
    rc = sl_api_call(api, "GET", path, NULL, NULL, &graph, err);
    if (!rc && json)
        cli_print_json(graph);
    else if (!rc)
        print_graph(graph);
    json_decref(graph);
    return rc;
}

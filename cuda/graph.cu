/* Steps as graphs, one per bucket: run the first time, captured the second, replayed from then on.
 *
 * A graph holds the addresses of scratch memory, so all are dropped when some of it moves. That happens in a bucket's first
 * run only: its later ones need no more. */
#include "cuda/cuda.cuh"
#include <stdlib.h>

#define GRAPHS 64 /* kept; the one that was not used for longest makes room */

struct graph {
    uint64_t bucket, used; /* bucket 0: free; used: of be->step */
    cudaGraphExec_t exec;  /* NULL: seen once */
};

struct sl_cuda_graphs {
    struct graph graph[GRAPHS];
    struct graph *capturing;
    bool moved; /* since the capture began */
};

static void drop(struct graph *g)
{
    if (g->exec)
        cudaGraphExecDestroy(g->exec);
    *g = {};
}

void sl_cuda_graphs_free(struct sl_cuda_graphs *s)
{
    for (int i = 0; s && i < GRAPHS; i++)
        drop(&s->graph[i]);
    free(s);
}

void sl_cuda_moved(struct sl_backend *be)
{
    struct sl_cuda_graphs *s = be->graphs;
    for (int i = 0; s && i < GRAPHS; i++)
        if (s->capturing != &s->graph[i])
            drop(&s->graph[i]);
    if (s)
        s->moved = true;
}

static struct graph *find(struct sl_cuda_graphs *s, uint64_t bucket)
{
    for (int i = 0; i < GRAPHS; i++)
        if (s->graph[i].bucket == bucket)
            return &s->graph[i];
    return NULL;
}

bool sl_cuda_step_replay(struct sl_backend *be, uint64_t bucket)
{
    struct graph *g = be->graphs && bucket ? find(be->graphs, bucket) : NULL;
    if (!g || !g->exec)
        return false;
    g->used = ++be->step;
    sl_cuda_failed(be, cudaGraphLaunch(g->exec, be->stream), "running a captured step");
    return true;
}

void sl_cuda_step_begin(struct sl_backend *be, uint64_t bucket)
{
    be->step++;
    if (!bucket)
        return;
    if (!be->graphs)
        be->graphs = (struct sl_cuda_graphs *)calloc(1, sizeof *be->graphs);
    if (!be->graphs)
        return; /* as without graphs */
    struct graph *g = find(be->graphs, bucket);
    if (!g) {
        g = &be->graphs->graph[0];
        for (int i = 1; i < GRAPHS; i++)
            if (be->graphs->graph[i].used < g->used)
                g = &be->graphs->graph[i];
        drop(g);
        *g = {bucket, be->step, NULL};
    } else if (!sl_cuda_failed(be, cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeRelaxed), "capturing a step")) {
        g->used = be->step;
        be->graphs->capturing = g;
        be->graphs->moved = false;
    }
}

/* Ends a capture and runs what it holds. */
static void run_captured(struct sl_backend *be)
{
    struct graph *g = be->graphs->capturing;
    cudaGraph_t graph = NULL;
    be->graphs->capturing = NULL;
    bool failed = sl_cuda_failed(be, cudaStreamEndCapture(be->stream, &graph), "capturing a step");
    if (!failed && be->graphs->moved) {
        sl_err_set(&be->kept, SL_DEVICE, "GPU %d: memory moved while a step was captured", be->device);
        failed = true;
    }
    failed = failed || sl_cuda_failed(be, cudaGraphInstantiate(&g->exec, graph, 0), "capturing a step") ||
             sl_cuda_failed(be, cudaGraphLaunch(g->exec, be->stream), "running a captured step");
    if (graph)
        cudaGraphDestroy(graph);
    if (failed)
        drop(g);
}

/* Does not wait: what only shows while the step runs is reported by the download that follows. */
int sl_cuda_step_end(struct sl_backend *be, struct sl_err *err)
{
    if (be->graphs && be->graphs->capturing)
        run_captured(be);
    sl_cuda_failed(be, cudaPeekAtLastError(), "a step");
    return sl_cuda_take_kept(be, err);
}

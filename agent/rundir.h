/* The folder of one claim: WORK_DIR/runs/<run>-<lease>/, with the plans for fetch and upload,
 * run.json for the worker, and what the worker writes. Everything here blocks, briefly: small files
 * only.
 *
 * Each folder holds a file `lock` that its agent has locked (flock) as long as it lives, so that a
 * later agent on the machine can tell a dead one's folder and remove it. The name holds the lease
 * id: a worker that still is in its last second cannot meet its successor's files.
 *
 *   inputs/model, inputs/train-0.jsonl, ...   what the fetch brought
 *   inputs/restore                            model.restore_path, when the config has one; a
 * tarball is unpacked checkpoint/                               what to resume from, when there is
 * something run.json                                  the worker's task out/ its results: prompt
 * tables, adapters, predictions, metrics */
#ifndef SL_AGENT_RUNDIR_H
#define SL_AGENT_RUNDIR_H
#include "base/file.h"
#include "queue/queue.h"

#define SL_RUNDIR_SOURCES_MAX 256 /* data files of one kind */

struct sl_rundir {
    char path[SL_PATH_MAX];
    int lock_fd; /* -1: none */
};

/* Removes what dead agents left under work_dir/runs. */
int sl_rundir_clean(const char *work_dir, struct sl_err *err);
int sl_rundir_make(const char *work_dir, const char *run, const char *lease,
                   struct sl_rundir *ret_dir, struct sl_err *err);
void sl_rundir_remove(struct sl_rundir *dir); /* NULL-safe, and for one that was never made */

struct sl_fetch_plan {
    const char *server, *cache; /* cache: folder shared by the machine's agents */
    const char *const *allow_paths;
    int n_allow_paths;
    int64_t cache_bytes; /* its limit; -1: half of its disk */
};
/* Writes fetch.json (its path to ret_plan): the spec's inputs and the checkpoint, if there is one.
 * SL_SPEC. */
int sl_rundir_fetch_plan(const struct sl_rundir *dir, const struct sl_claim *claim,
                         const struct sl_fetch_plan *plan, char ret_plan[SL_PATH_MAX],
                         struct sl_err *err);
/* Writes run.json. */
int sl_rundir_run_json(const struct sl_rundir *dir, const struct sl_claim *claim,
                       struct sl_err *err);
/* Names inputs in a worker's message as the spec does: "DIR/inputs/train-0.jsonl:417" becomes
 * "words:latest/train.jsonl:417". Left as it is when there is no room (size) for that. */
void sl_rundir_name_sources(const struct sl_rundir *dir, const struct sl_claim *claim, char *text,
                            size_t size);
/* Writes push-checkpoint.json for the folder `from` (relative). inputs: as in sl_publish_plan, for the attempts that go on. */
int sl_rundir_checkpoint_plan(const struct sl_rundir *dir, const struct sl_claim *claim, const json_t *inputs,
                              const char *lease, const char *server, const char *from,
                              char ret_plan[SL_PATH_MAX], struct sl_err *err);
struct sl_publish_plan {
    const char *server;
    const json_t *metrics;
    const json_t *inputs;  /* what the fetch brought (artifacts/plan.h); may be NULL */
    const json_t *started; /* the worker's start event; may be NULL */
};
/* Writes push-outputs.json: out/ as the artifact that the spec names, and the request to publish it. */
int sl_rundir_publish_plan(const struct sl_rundir *dir, const struct sl_claim *claim,
                           const char *lease, const struct sl_publish_plan *plan,
                           char ret_plan[SL_PATH_MAX], struct sl_err *err);
/* Who made the outputs of what, for their version records (artifacts/lineage.h). New reference, or NULL: out of
 * memory. */
json_t *sl_rundir_facts(const struct sl_claim *claim, const json_t *inputs, const json_t *started);
/* Makes `checkpoint` lead to the folder `from` (relative), for a worker that is started again here.
 */
int sl_rundir_resume_from(const struct sl_rundir *dir, const char *from, struct sl_err *err);

#endif

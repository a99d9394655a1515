/* The table of all runs: a row for each that Redis or the archive has, with what lists filter and sort by, and the run
 * as a list shows it. server/history.h keeps it up to date; it may be made anew at any time.
 *
 * An archived run's row follows from its record and is never changed by what Redis says. Tags and notes come from the
 * archive's notes. All functions block; may be called from any thread. */
#ifndef SL_SERVER_RUNS_INDEX_H
#define SL_SERVER_RUNS_INDEX_H
#include "server/archive.h"

#define SL_RUNS_PAGE_MAX 200
#define SL_RUNS_Q_MAX 200        /* bytes of a search */
#define SL_RUNS_WORDS_MAX 8      /* of it */
#define SL_RUNS_CURSOR_MAX 1024  /* bytes */
#define SL_RUNS_DIFFERENCES_MAX 100

struct sl_runs_index;

/* archive is borrowed. *ret_fresh: it is empty. */
int sl_runs_index_open(const char *path, struct sl_archive *archive, struct sl_runs_index **ret_index,
                       bool *ret_fresh, struct sl_err *err);
void sl_runs_index_close(struct sl_runs_index *x); /* NULL-safe */
bool sl_runs_index_damaged(const struct sl_runs_index *x);

/* ---- changes; each call is one transaction ----------------------------------------------------- */

/* runs: as the API gives them, with or without spec and log. Live ones without a state are gone. */
int sl_runs_index_put(struct sl_runs_index *x, const json_t *runs, bool archived, struct sl_err *err);
/* note: {"notes", "tags"}. A run that is not there is left alone. */
int sl_runs_index_note(struct sl_runs_index *x, const char *run, const json_t *note, struct sl_err *err);
int sl_runs_index_remove(struct sl_runs_index *x, const json_t *ids, struct sl_err *err);

/* ---- reading ----------------------------------------------------------------------------------- */

struct sl_runs_query {
    const char *sort;   /* "[-]KEY", see sl_runs_index_sorts; NULL: "-created" */
    const char *cursor; /* a page's "next_cursor"; NULL: from the start */
    int64_t below;      /* with "-created": runs with a smaller seq only; 0: all */
    int limit;          /* 1 .. SL_RUNS_PAGE_MAX */
    const char *project, *queue, *state, *tag, *q; /* NULL or "": any */
    const json_t *projects; /* list of names: of these only; NULL: all */
};
/* {"runs", "total": how many match, "next_cursor" and "next" (with "-created": its seq) or null}. Runs without the value
 * come last in both directions; equal ones in order of their seq. Every word of q must be in the name, id,
 * project, queue, user, job, tags or notes, whatever the case. SL_SPEC: a bad sort or cursor. */
int sl_runs_index_query(struct sl_runs_index *x, const struct sl_runs_query *query, json_t **ret_page,
                        struct sl_err *err);
const char *sl_runs_index_sorts(void); /* "created, finished, ...": for messages */

int sl_runs_index_newest(struct sl_runs_index *x, int64_t *ret_seq, struct sl_err *err); /* 0: none */
/* Archived runs that ended before a time, oldest first: a list of ids. */
int sl_runs_index_old(struct sl_runs_index *x, int64_t before_ms, int most, json_t **ret_ids,
                      struct sl_err *err);
/* Archived ids that begin with prefix, in order. */
int sl_runs_index_archived(struct sl_runs_index *x, const char *prefix, json_t **ret_ids,
                           struct sl_err *err);
/* Ids of runs that are not archived, from seq up to and without another. */
int sl_runs_index_live(struct sl_runs_index *x, int64_t from, int64_t below, json_t **ret_ids,
                       struct sl_err *err);
/* What two say differently: {"runs": how many are in b, "n_differences", "differences": [{"run", "what": "missing" from b,
 * "extra" in b, or "differs", "in": which columns}], at most SL_RUNS_DIFFERENCES_MAX}. */
int sl_runs_index_compare(struct sl_runs_index *a, struct sl_runs_index *b, json_t **ret_report,
                          struct sl_err *err);

#endif

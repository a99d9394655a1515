/* What the index's files share. Nobody else includes this. */
#ifndef SL_SERVER_RUNS_INDEX_PRIV_H
#define SL_SERVER_RUNS_INDEX_PRIV_H
#include "server/db.h"
#include "server/runs_index.h"
#include <stdint.h>

struct sl_runs_index {
    struct sl_db *db;
    struct sl_archive *archive;
};

/* sl_db_begin; an index that could not be opened is NULL. */
int sl_runs_index_begin(struct sl_runs_index *x, bool write, struct sl_db_conn **ret_conn, struct sl_err *err);

/* A set of runs by their numbers. */
struct sl_runs_set {
    uint64_t *bits; /* NULL: every run; free it */
    int64_t n_bits;
};

static inline bool sl_runs_set_has(const struct sl_runs_set *set, int64_t n)
{
    return !set->bits || (n < set->n_bits && set->bits[n / 64] >> (n % 64) & 1);
}

/* Those that meet the query's conditions, and how many. set is empty before; after an error it may hold bits, too. */
int sl_runs_set_of(struct sl_db_conn *c, const struct sl_runs_query *q, struct sl_runs_set *set, int64_t *ret_total,
                   struct sl_err *err);
/* Those of a set with bits as a JSON list, heap-allocated. NULL: out of memory. */
char *sl_runs_set_numbers(const struct sl_runs_set *set);

#endif

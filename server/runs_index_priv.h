/* What the index's files share. Nobody else includes this. */
#ifndef SL_SERVER_RUNS_INDEX_PRIV_H
#define SL_SERVER_RUNS_INDEX_PRIV_H
#include "server/db.h"
#include "server/runs_index.h"

struct sl_runs_index {
    struct sl_db *db;
    struct sl_archive *archive;
};

/* sl_db_begin; an index that could not be opened is NULL. */
int sl_runs_index_begin(struct sl_runs_index *x, bool write, struct sl_db_conn **ret_conn, struct sl_err *err);

#endif

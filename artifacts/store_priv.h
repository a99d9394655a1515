/* What the files of the store share. Nobody else includes this. */
#ifndef SL_ARTIFACTS_STORE_PRIV_H
#define SL_ARTIFACTS_STORE_PRIV_H
#include "artifacts/store.h"
#include "base/file.h"
#include <pthread.h>

#define SL_RECORD_MAX_BYTES (64u << 10)
/* Room for far more than SL_STORE_MAX_ALIASES: outputs promised at the same time may go over it. */
#define SL_ALIASES_MAX_BYTES (1u << 20)

struct sl_store {
    char *dir;
    int lock_fd;
    pthread_mutex_t mutex; /* versions, aliases, reservations; blobs need none */
    json_t *newest;        /* name -> number of its newest version, filled as asked for */
    json_t *reserved;      /* name -> list of numbers given out by allocate */
    bool journal_pending;  /* a commit stopped half way (disk full): finish it before the next */
};

/* Makes path with this text unless it is there; durable. ret_exists: it was there (and is
 * untouched). */
int sl_store_create(struct sl_store *store, const char *path, const char *text, bool *ret_exists,
                    struct sl_err *err);
/* mkdir, durable; fine when it is there. */
int sl_store_mkdir(const char *path, struct sl_err *err);
/* An artifact's stored aliases, name -> number; an empty object when there are none. */
int sl_store_read_moves(const struct sl_store *store, const char *name, json_t **ret_moves,
                        struct sl_err *err);
int sl_store_read_aliases(const struct sl_store *store, const char *name, json_t **ret_aliases,
                          struct sl_err *err);
int sl_store_record_path(const struct sl_store *store, const char *name, int number,
                         char ret_path[SL_PATH_MAX], struct sl_err *err);

int sl_store_read_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                           struct sl_err *err);
int sl_store_nomem(struct sl_err *err);
int sl_store_check_name(const char *what, const char *name, struct sl_err *err);
int sl_store_check_sha256(const char *sha256, struct sl_err *err);

/* ---- records (the mutex is held) ------------------------------------------------------------- */

/* The newest version's number, -1: none. */
int sl_store_newest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err);
/* The stored record as it is. SL_NOTFOUND. */
int sl_store_read_record(const struct sl_store *store, const char *name, int number,
                         json_t **ret_record, struct sl_err *err);
/* With its aliases and files, as store.h describes ret_record. */
int sl_store_full_record(struct sl_store *store, const char *name, int number, json_t **ret_record,
                         struct sl_err *err);

/* ---- the journal (the mutex is held) --------------------------------------------------------- */

/* Carries out {"name", "number", "record" or null, "run" and "output" or null, "aliases"}, all or
 * nothing: it is written down whole before its steps, each of which may be repeated. */
int sl_store_journal(struct sl_store *store, const json_t *entry, struct sl_err *err);
/* Finishes what a crash or a full disk has left. */
int sl_store_replay(struct sl_store *store, struct sl_err *err);

#endif

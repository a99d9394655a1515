/* What the files of the store share. Nobody else includes this. */
#ifndef SL_ARTIFACTS_STORE_PRIV_H
#define SL_ARTIFACTS_STORE_PRIV_H
#include "artifacts/store.h"
#include "base/file.h"
#include <pthread.h>

#define SL_RECORD_MAX_BYTES (1u << 20) /* a journal entry has a run's facts twice */
/* Room for far more than SL_STORE_MAX_ALIASES: outputs promised at the same time may go over it. */
#define SL_ALIASES_MAX_BYTES (1u << 20)

struct sl_store {
    char *dir;
    int lock_fd;
    pthread_mutex_t mutex; /* versions, aliases, reservations; blobs need none */
    json_t *newest;        /* name -> number of its newest version, filled as asked for */
    json_t *highest;       /* the same of all that ever were, deleted ones too */
    json_t *reserved;      /* name -> list of numbers given out by allocate */
    json_t *lineage;       /* lineage.c's index; NULL: nobody has asked yet */
    bool journal_pending;  /* a commit stopped half way (disk full): finish it before the next */

    pthread_mutex_t blob_mutex; /* what follows, and removing blobs; taken behind mutex, never before */
    json_t *held;               /* sha256 -> until when (boot time) a collection leaves it */
    json_t *fresh;              /* sha256 of what was committed since the collection under way began */
    bool collecting;
    struct upload_file *uploads; /* being written to */
    struct sl_remote *remote;    /* where blobs lie besides (remote.h); NULL: nowhere */
    struct sl_store_guard *guards;
    int n_guards;
};

/* Makes path with this text unless it is there; durable. ret_exists: it was there (and is
 * untouched). */
int sl_store_create(struct sl_store *store, const char *path, const char *text, bool *ret_exists,
                    struct sl_err *err);
/* mkdir, durable; fine when it is there. */
int sl_store_mkdir(const char *path, struct sl_err *err);
/* SL_SPEC: not a digest. */
int sl_store_blob_path(const struct sl_store *store, const char *sha256, char ret_path[SL_PATH_MAX],
                       struct sl_err *err);
/* Syncs the folder that path lies in. */
int sl_store_sync_parent(const char *path, struct sl_err *err);
/* Collections leave the blob for SL_STORE_HOLD_S from now, be it there or on its way. */
void sl_store_hold(struct sl_store *store, const char *sha256);
/* A version has it from now on: the hold ends, but a collection under way, which may have read that
 * artifact before, leaves it. */
void sl_store_unhold(struct sl_store *store, const char *sha256);
/* Removes leftovers of uploads that nobody writes to and that are older than grace_us. */
int sl_store_clean_uploads(struct sl_store *store, int64_t grace_us, struct sl_err *err);

/* An artifact's stored aliases, name -> number; an empty object when there are none. */
int sl_store_read_moves(const struct sl_store *store, const char *name, json_t **ret_moves,
                        struct sl_err *err);
int sl_store_read_aliases(const struct sl_store *store, const char *name, json_t **ret_aliases,
                          struct sl_err *err);
/* What is left of a deleted version: its record without files, and "deleted". */
int sl_store_gone_path(const struct sl_store *store, const char *name, int number,
                       char ret_path[SL_PATH_MAX], struct sl_err *err);
int sl_store_record_path(const struct sl_store *store, const char *name, int number,
                         char ret_path[SL_PATH_MAX], struct sl_err *err);

int sl_store_read_manifest(struct sl_store *store, const char *sha256, json_t **ret_manifest,
                           struct sl_err *err);
static inline int sl_store_nomem(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory");
}
int sl_store_check_name(const char *what, const char *name, struct sl_err *err);
int sl_store_check_alias(const char *alias, struct sl_err *err);
int sl_store_check_sha256(const char *sha256, struct sl_err *err);

/* ---- records (the mutex is held) ------------------------------------------------------------- */

/* The newest version's number, -1: none. */
int sl_store_newest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err);
/* The highest number that was ever given, deleted versions' too; -1: none. */
int sl_store_highest(struct sl_store *store, const char *name, int *ret_number, struct sl_err *err);
/* The number that "v3", "latest" or an alias stands for. SL_NOTFOUND. */
int sl_store_number_of(struct sl_store *store, const char *name, const char *version,
                       int *ret_number, struct sl_err *err);
/* The stored record as it is. SL_NOTFOUND. */
int sl_store_read_record(const struct sl_store *store, const char *name, int number,
                         json_t **ret_record, struct sl_err *err);
/* With its aliases and files, as store.h describes ret_record. Of a deleted version (deleted: may be
 * one) what is left, without files; else SL_NOTFOUND. */
int sl_store_full_record(struct sl_store *store, const char *name, int number, bool deleted,
                         json_t **ret_record, struct sl_err *err);

/* ---- the journal (the mutex is held) --------------------------------------------------------- */

/* Carries out {"name", "number", "record" or null, "run" and "output" or null, "facts" or null, "by" or null, "aliases"}, or for
 * a deletion {"name", "number", "gone": what is left, "refund" or null}, or {"name", "drop": aliases},
 * all or nothing: it is written down whole before its steps, each of which may be repeated. */
int sl_store_journal(struct sl_store *store, const json_t *entry, struct sl_err *err);
/* A marker was written: {"name", "number", "facts"}. */
void sl_lineage_note(struct sl_store *store, const char *run, const char *output, const json_t *marker);
/* As sl_registry_holder. */
int sl_registry_held(struct sl_store *store, const char *artifact, int number, char **ret_model,
                     struct sl_err *err);
/* What a registered model has in a stage. SL_NOTFOUND. */
int sl_registry_stage_at(const struct sl_store *store, const char *model, const char *stage,
                         char ret_artifact[SL_NAME_MAX + 1], int *ret_number);
/* Finishes what a crash or a full disk has left. */
int sl_store_replay(struct sl_store *store, struct sl_err *err);

#endif

/* The verbs of `softlaunch artifact` that tend the store: rm, unalias, gc, verify, export. */
#ifndef SL_CLI_ARTIFACT_STORE_H
#define SL_CLI_ARTIFACT_STORE_H
#include "artifacts/api.h"
#include "artifacts/names.h"
#include "artifacts/pace.h"
#include <stdbool.h>
#include <stdint.h>

struct artifact_options {
    int grace_s; /* of gc; -1: the server's */
    bool json, unpack, hash;
    struct sl_pace *pace; /* of transfers */
};

/* The version that a reference names, checked: its project, manifest and the one file, if it names one. SL_NOTFOUND. */
int artifact_record(struct sl_api *api, const char *text, struct sl_ref *ret_ref, json_t **ret_record,
                    struct sl_err *err);
int artifact_rm(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                struct sl_err *err);
int artifact_unalias(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                     struct sl_err *err);
int artifact_gc(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                struct sl_err *err);
/* SL_DATA when the store has problems, after printing them. */
int artifact_verify(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                    struct sl_err *err);
/* Sends the files of a version, or one of them, to a bucket: cli/artifact_export.c. */
int artifact_export(struct sl_api *api, const struct artifact_options *o, int argc, char **argv,
                    struct sl_err *err);
/* "1.2 GB" */
void artifact_bytes(int64_t bytes, char ret_text[24]);
void artifact_print_json(const json_t *j);

#endif

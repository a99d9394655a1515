/* Names and references of artifacts, and paths inside them. Pure functions.
 *
 * A name (of an artifact, alias, run, output): [a-z0-9][a-z0-9._-]{0,127}. A reference:
 *   name            newest version      name:v0      that version       name:candidate   an alias
 *   any of them followed by /path/of/a/file: that one file.
 *   project/ in front of name:v0 or name:candidate: the artifact must be that project's. (Without a version behind the
 *   name, what follows the slash is a file's path.) */
#ifndef SL_ARTIFACTS_NAMES_H
#define SL_ARTIFACTS_NAMES_H
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>

#define SL_NAME_MAX 128
#define SL_ENTRY_PATH_MAX 512 /* bytes of a path inside an artifact or archive */
#define SL_ENTRY_DEPTH_MAX 16

struct sl_ref {
    char project[SL_NAME_MAX + 1]; /* "" when the reference names none */
    char name[SL_NAME_MAX + 1];
    char version[SL_NAME_MAX + 1];    /* "latest" when the reference has none */
    char file[SL_ENTRY_PATH_MAX + 1]; /* "" when it names no file */
};

bool sl_name_valid(const char *name); /* NULL is not valid */
/* "v" and a number without leading zeros: its number; else -1. */
int sl_version_number(const char *version);
/* A valid name that is neither `latest` nor like a version. */
bool sl_alias_valid(const char *alias);
/* Relative, printable UTF-8 without backslash, no empty, "." or ".." parts, within the limits
 * above. */
bool sl_entry_path_valid(const char *path);
/* SL_SPEC says what is wrong with the text. */
int sl_ref_parse(const char *text, struct sl_ref *ret_ref, struct sl_err *err);
/* The same file or files of exactly this version: "words:latest/train.jsonl", words, v3 -> "words:v3/train.jsonl". SL_SPEC. */
int sl_ref_pin(const char *text, const char *name, const char *version, char *ret_text, size_t size,
               struct sl_err *err);
/* Whether what the server found is of the project that the reference names. SL_NOTFOUND. found: its project, may be NULL. */
int sl_ref_check_project(const struct sl_ref *ref, const char *found, struct sl_err *err);

#endif

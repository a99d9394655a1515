/* References in configurations: "${model.seed}", as OmegaConf's interpolations.
 *
 * A string that is one reference becomes the value it names, of its type; within a longer string
 * the value is printed (True, None, 0.0001: as Python does). A key is dotted, list elements as ".0"
 * or "[0]"; leading dots count from the string's own place ("${.lr}": beside it). What is referred
 * to may itself refer; "${a.${b}}" nests; "\${" is a plain "${". Resolvers ("${oc.env:HOME}") are
 * refused: a configuration depends on nothing outside. Nothing here blocks. Thread-safe. */
#ifndef SL_BASE_REFS_H
#define SL_BASE_REFS_H
#include "base/err.h"
#include <jansson.h>

#define SL_REFS_MAX_DEPTH 32         /* references through references */
#define SL_REFS_MAX_COST (16u << 20) /* bytes looked at and made, together */
#define SL_REFS_KEY_MAX 512          /* bytes of a key */
#define SL_REFS_MISSING "?\?\?"      /* a value that whoever runs it has to give, as OmegaConf's */

/* Replaces the references in value, an object, by what they name in root (value itself, or another
 * object whose keys lie at the same places). SL_SPEC names the reference and its place: unknown
 * key, circle, resolver, a list or mapping within a text, over the limits. value may be half done
 * then. SL_NOMEM. */
int sl_refs_resolve(json_t *value, const json_t *root, struct sl_err *err);

#endif

/* What the schema_*.c files share; not for others. */
#ifndef SL_BASE_SCHEMA_IMPL_H
#define SL_BASE_SCHEMA_IMPL_H
#include "base/schema.h"
#include <regex.h>

struct sl_schema_pattern {
    const json_t *text; /* the string in the schema: its identity finds the compiled form */
    regex_t re;
};

struct sl_schema {
    json_t *root;
    int n_patterns;
    struct sl_schema_pattern pattern[SL_SCHEMA_MAX_PATTERNS];
};

/* The entry of $defs; NULL: none. */
const json_t *sl_schema_def(const struct sl_schema *s, const char *name);
/* What a $ref leads to, else the schema itself; NULL: nowhere, or to itself. */
const json_t *sl_schema_follow(const struct sl_schema *s, const json_t *schema);

#endif

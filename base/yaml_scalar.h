/* What an unquoted word of YAML, or of a command line, stands for (see yaml.h). */
#ifndef SL_BASE_YAML_SCALAR_H
#define SL_BASE_YAML_SCALAR_H
#include "base/err.h"
#include <jansson.h>
#include <stddef.h>

enum sl_yaml_rules {
    SL_YAML_RULES, /* PyYAML's with OmegaConf's changes */
    SL_HYDRA_RULES
};

/* null, a boolean, or a number: a new reference; *ret_json stays as it is for what is a string.
 * text ends in a zero byte at len. SL_SPEC: an integer beyond 64 bits; SL_NOMEM. Thread-safe. */
int sl_yaml_scalar(enum sl_yaml_rules rules, const char *text, size_t len, json_t **ret_json,
                   struct sl_err *err);

#endif

/* What a run gets in its environment beside the agent's own: secrets and allowed variables, and how neither is told.
 *
 * A spec names secrets ({"HF_TOKEN": "secret:hf"}) and variables of the agent's environment ("env": ["HF_ENDPOINT"]). Their
 * values are read here when the run is claimed, go to its children's environment, and nowhere else: whatever a child says
 * is masked before anything else looks at it. A secret is a file, DIR/PROJECT/NAME or else DIR/NAME, of a folder that only
 * the agent reads; a variable must be one that the operator allows. */
#ifndef SL_AGENT_SECRETS_H
#define SL_AGENT_SECRETS_H
#include "base/err.h"
#include <jansson.h>
#include <stddef.h>

#define SL_SECRETS_MAX 32                /* of one run, variables included */
#define SL_SECRET_MAX_BYTES (16u << 10)
#define SL_SECRET_MIN_BYTES 6            /* what is shorter would mask half the log */
#define SL_SECRET_FORMS_MAX 256          /* texts to be masked: values, their lines, and these as URLs and JSON have them */

struct sl_secret_sources {
    const char *dir;              /* NULL: there are none */
    const char *const *allow_env; /* variables that a spec may ask for */
    int n_allow_env;
};

struct sl_secrets {
    char *env[SL_SECRETS_MAX + 1]; /* "NAME=value", NULL at the end */
    int n_env;
    char *form[SL_SECRET_FORMS_MAX]; /* longest first */
    int n_forms;
};

/* Reads what a spec asks for. SL_NOTFOUND: there is no such secret or variable here; SL_DENIED: the variable is not
 * allowed; SL_SPEC: too short, too long. Messages name names, never values. Blocks: small files. */
int sl_secrets_load(const json_t *spec, const struct sl_secret_sources *from, struct sl_secrets *ret_secrets,
                    struct sl_err *err);
void sl_secrets_release(struct sl_secrets *s); /* clears the values; fine when all zero */
/* Masks every form in a text, in place; it never grows. */
void sl_secrets_mask(const struct sl_secrets *s, char *text);
/* The same in every string of a value. New reference. */
json_t *sl_secrets_mask_json(const struct sl_secrets *s, const json_t *json);
/* Names of the agent's own variables that look like credentials, or are given to runs that ask, and are not this run's: for
 * putenv to remove, a worker gets none. ret_names points into names (size bytes); at most `most`. */
int sl_secrets_foreign(const struct sl_secrets *s, const struct sl_secret_sources *from, const char **ret_names,
                       char *names, size_t size, int most);

#endif

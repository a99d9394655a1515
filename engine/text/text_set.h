/* A hash set of token ids by the text they stand for. The texts stay where they are: a function
 * gives them. Bounded probing, so that a vocabulary made to collide is refused instead of being
 * slow. */
#ifndef SL_ENGINE_TEXT_SET_H
#define SL_ENGINE_TEXT_SET_H
#include <stddef.h>
#include <stdint.h>

struct sl_text {
    const char *p;
    size_t len;
};

struct sl_text_set {
    int32_t *slot; /* ids; -1: free */
    size_t mask;
    struct sl_text (*text_of)(const void *arg, int32_t id);
    const void *arg;
};

/* For at most n ids; text_of and arg are to be set already. SL_NOMEM. */
int sl_text_set_init(struct sl_text_set *s, int n);
void sl_text_set_release(struct sl_text_set *s);
/* An id of the same text is replaced. SL_DATA after too many probes. */
int sl_text_set_add(struct sl_text_set *s, int32_t id);
int32_t sl_text_set_find(const struct sl_text_set *s, struct sl_text text); /* -1: none */

#endif

/* What the parts of the pickle reader share: pickle.c is the machine (stack, memo and opcodes), pickle_doc.c
 * keeps the values it makes, pickle_torch.c is what a pickle may import and call. Not for anybody else. */
#ifndef SL_ENGINE_PICKLE_READER_H
#define SL_ENGINE_PICKLE_READER_H
#include "engine/format/pickle.h"
#include <stdbool.h>

struct sl_pickle_doc {
    struct sl_pickle_chunk *chunks; /* all values, freed together */
    size_t bytes;
    const struct sl_pickle *root;
};

struct sl_pickle_reader {
    const unsigned char *text;
    size_t len, at, op_at;
    struct sl_pickle_doc *doc;
    struct sl_err *err;
    struct sl_pickle **stack;
    size_t n_stack, cap_stack;
    size_t mark[SL_PICKLE_MAX_MARKS]; /* heights of the stack */
    int n_marks;
    struct sl_pickle **memo;
    size_t cap_memo, n_memo; /* n_memo: where MEMOIZE goes next */
    int n_values;
};

/* Each returns 0 or a negative code with r->err filled. */
int sl_pickle_bad(struct sl_pickle_reader *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3))); /* SL_DATA, with the place */
#ifdef __clang_analyzer__ /* as in base/err.h: it cannot see that this is never 0 */
#define sl_pickle_bad(...) ((sl_pickle_bad)(__VA_ARGS__), SL_DATA)
#endif
static inline int sl_pickle_nomem(struct sl_pickle_reader *r)
{
    return sl_err_set(r->err, SL_NOMEM, "out of memory for a pickle");
}
int sl_pickle_arena(struct sl_pickle_reader *r, size_t bytes, void **ret_p);
int sl_pickle_make(struct sl_pickle_reader *r, enum sl_pickle_type type, struct sl_pickle **ret_v);
int sl_pickle_add_items(struct sl_pickle_reader *r, struct sl_pickle *list,
                        struct sl_pickle *const *items, size_t n);
int sl_pickle_push(struct sl_pickle_reader *r, struct sl_pickle *v);
int sl_pickle_need(struct sl_pickle_reader *r, size_t n); /* values above the newest mark */

/* The opcodes of pickle_torch.c. */
int sl_pickle_global(struct sl_pickle_reader *r);
int sl_pickle_stack_global(struct sl_pickle_reader *r);
int sl_pickle_reduce(struct sl_pickle_reader *r);
int sl_pickle_storage(struct sl_pickle_reader *r);

#endif

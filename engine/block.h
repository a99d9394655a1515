/* One block of memory given out in pieces, for backends: reserve() in ops.h. Pieces are aligned to
 * 256 bytes and come back with the whole block; only the last one given can be given again before.
 */
#ifndef SL_ENGINE_BLOCK_H
#define SL_ENGINE_BLOCK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_BLOCK_ALIGN ((size_t)256)

struct sl_block {
    char *base;               /* NULL: none */
    size_t bytes, used, last; /* last: where the piece given last begins */
};

/* NULL when there is not so much left. */
static inline void *sl_block_take(struct sl_block *b, size_t bytes)
{
    size_t room = (bytes + SL_BLOCK_ALIGN - 1) / SL_BLOCK_ALIGN * SL_BLOCK_ALIGN;
    if (!room)
        room = SL_BLOCK_ALIGN;
    if (!b->base || room > b->bytes - b->used)
        return NULL;
    b->last = b->used;
    b->used += room;
    return b->base + b->last;
}

/* True when p is a piece of it: there is nothing else to free. */
static inline bool sl_block_give(struct sl_block *b, const void *p)
{
    if (!b->base || (const char *)p < b->base || (const char *)p >= b->base + b->bytes)
        return false;
    if ((const char *)p == b->base + b->last)
        b->used = b->last;
    return true;
}

#endif

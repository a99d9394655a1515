/* What a pickle's text becomes: its values, in chunks that are freed together, and the one at its top. */
#include "engine/format/pickle_reader.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (64u << 10) /* of the arena; a longer list has a chunk of its own */
#define ARENA_MAX (24u << 20)   /* bytes */

struct sl_pickle_chunk {
    struct sl_pickle_chunk *next;
    size_t used, size;
    max_align_t data[];
};

int sl_pickle_arena(struct sl_pickle_reader *r, size_t bytes, void **ret_p)
{
    struct sl_pickle_doc *d = r->doc;

    bytes = (bytes + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (!d->chunks || d->chunks->size - d->chunks->used < bytes) {
        size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
        struct sl_pickle_chunk *c;

        if (size > ARENA_MAX - d->bytes)
            return sl_pickle_bad(r, "its values need more than %u MiB", ARENA_MAX >> 20);
        c = malloc(sizeof *c + size);
        if (!c)
            return sl_pickle_nomem(r);
        *c = (struct sl_pickle_chunk){d->chunks, 0, size};
        d->chunks = c;
        d->bytes += size;
    }
    *ret_p = (char *)d->chunks->data + d->chunks->used;
    d->chunks->used += bytes;
    return 0;
}

int sl_pickle_make(struct sl_pickle_reader *r, enum sl_pickle_type type, struct sl_pickle **ret_v)
{
    void *p = NULL;
    int rc;

    if (++r->n_values > SL_PICKLE_MAX_VALUES)
        return sl_pickle_bad(r, "more than %d values", SL_PICKLE_MAX_VALUES);
    rc = sl_pickle_arena(r, sizeof **ret_v, &p);
    if (rc)
        return rc;
    *ret_v = memset(p, 0, sizeof **ret_v);
    (*ret_v)->type = type;
    return 0;
}

int sl_pickle_add_items(struct sl_pickle_reader *r, struct sl_pickle *list,
                        struct sl_pickle *const *items, size_t n)
{
    if (n > list->cap - list->n) {
        size_t cap = list->cap * 2 > list->n + n ? list->cap * 2 : list->n + n;
        void *p = NULL;
        int rc;

        if (cap > UINT32_MAX / 2)
            return sl_pickle_bad(r, "a list of %zu items", cap);
        rc = sl_pickle_arena(r, cap * sizeof *items, &p);
        if (rc)
            return rc;
        if (list->n)
            memcpy(p, list->u.item, list->n * sizeof *items);
        list->u.item = p;
        list->cap = (uint32_t)cap;
    }
    if (n)
        memcpy(list->u.item + list->n, items, n * sizeof *items);
    list->n += (uint32_t)n;
    return 0;
}

void sl_pickle_free(struct sl_pickle_doc *doc)
{
    if (!doc)
        return;
    while (doc->chunks) {
        struct sl_pickle_chunk *next = doc->chunks->next;

        free(doc->chunks);
        doc->chunks = next;
    }
    free(doc);
}

const struct sl_pickle *sl_pickle_root(const struct sl_pickle_doc *doc)
{
    return doc->root;
}

#include "engine/text/text_set.h"
#include "base/err.h"
#include <stdlib.h>
#include <string.h>

#define PROBES_MAX 256 /* a quarter-full table this crowded was made to be */

int sl_text_set_init(struct sl_text_set *s, int n)
{
    size_t size = 16;
    while (size < 4 * (size_t)n)
        size *= 2;
    s->slot = malloc(size * sizeof *s->slot);
    if (!s->slot)
        return SL_NOMEM;
    memset(s->slot, -1, size * sizeof *s->slot);
    s->mask = size - 1;
    return 0;
}

void sl_text_set_release(struct sl_text_set *s)
{
    if (!s)
        return;
    free(s->slot);
    s->slot = NULL;
}

static size_t hash(struct sl_text text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (size_t i = 0; i < text.len; i++)
        h = (h ^ (unsigned char)text.p[i]) * UINT64_C(0x100000001b3);
    return (size_t)(h ^ h >> 29);
}

/* The slot that holds the text, or the free one where it belongs; NULL after too many probes. */
static int32_t *find_slot(const struct sl_text_set *s, struct sl_text text)
{
    size_t at = hash(text) & s->mask;
    for (int probe = 0; probe < PROBES_MAX; probe++, at = (at + 1) & s->mask) {
        if (s->slot[at] < 0)
            return &s->slot[at];
        struct sl_text other = s->text_of(s->arg, s->slot[at]);
        if (other.len == text.len && !memcmp(other.p, text.p, text.len))
            return &s->slot[at];
    }
    return NULL;
}

int sl_text_set_add(struct sl_text_set *s, int32_t id)
{
    int32_t *slot = find_slot(s, s->text_of(s->arg, id));
    if (!slot)
        return SL_DATA;
    *slot = id;
    return 0;
}

int32_t sl_text_set_find(const struct sl_text_set *s, struct sl_text text)
{
    const int32_t *slot = find_slot(s, text);
    return slot ? *slot : -1;
}

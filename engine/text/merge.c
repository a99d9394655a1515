#include "engine/text/merge.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PROBES_MAX 256 /* a quarter-full table this crowded was made to be */
#define SHORT_PIECE 48 /* symbols; below, scanning beats the heap */
#define NO_RANK UINT32_MAX

struct entry {
    uint64_t pair; /* left and right; UINT64_MAX: free */
    uint32_t rank;
    int32_t whole;
};

struct sl_merges {
    struct entry *entry;
    size_t mask;
};

int sl_merges_new(int n_merges, struct sl_merges **ret_merges, struct sl_err *err)
{
    size_t size = 16;
    while (size < 4 * (size_t)n_merges)
        size *= 2;
    struct sl_merges *m = malloc(sizeof *m);
    struct entry *entry = malloc(size * sizeof *entry);
    if (!m || !entry) {
        free(m);
        free(entry);
        return sl_err_set(err, SL_NOMEM, "out of memory for %d merges", n_merges);
    }
    memset(entry, 0xFF, size * sizeof *entry);
    m->entry = entry;
    m->mask = size - 1;
    *ret_merges = m;
    return 0;
}

void sl_merges_free(struct sl_merges *m)
{
    if (!m)
        return;
    free(m->entry);
    free(m);
}

static inline uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline size_t hash_pair(uint64_t pair)
{
    uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(h ^ h >> 32);
}

int sl_merges_add(struct sl_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t whole,
                  struct sl_err *err)
{
    uint64_t pair = pair_of(left, right);
    size_t at = hash_pair(pair) & m->mask;
    for (int probe = 0; probe < PROBES_MAX; probe++, at = (at + 1) & m->mask) {
        struct entry *e = &m->entry[at];
        if (e->pair == UINT64_MAX || e->pair == pair) {
            *e = (struct entry){pair, rank, whole};
            return 0;
        }
    }
    return sl_err_set(err, SL_DATA, "merge %u: the merges defeat hashing", rank);
}

static inline const struct entry *find(const struct sl_merges *m, int32_t left, int32_t right)
{
    uint64_t pair = pair_of(left, right);
    size_t at = hash_pair(pair) & m->mask;
    while (m->entry[at].pair != pair && m->entry[at].pair != UINT64_MAX)
        at = (at + 1) & m->mask;
    return m->entry[at].pair == pair ? &m->entry[at] : NULL;
}

static inline uint32_t rank_of(const struct sl_merges *m, int32_t left, int32_t right,
                               int32_t *ret_whole)
{
    const struct entry *e = find(m, left, right);
    *ret_whole = e ? e->whole : -1;
    return e ? e->rank : NO_RANK;
}

static int merge_short(const struct sl_merges *m, int32_t *id, int n)
{
    uint32_t rank[SHORT_PIECE]; /* of the pair (i, i+1) */
    int32_t whole[SHORT_PIECE];
    for (int i = 0; i + 1 < n; i++)
        rank[i] = rank_of(m, id[i], id[i + 1], &whole[i]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NO_RANK)
            break;
        id[best] = whole[best];
        n--;
        for (int i = best + 1; i < n; i++)
            id[i] = id[i + 1];
        for (int i = best + 1; i + 1 < n; i++) {
            rank[i] = rank[i + 1];
            whole[i] = whole[i + 1];
        }
        if (best > 0)
            rank[best - 1] = rank_of(m, id[best - 1], id[best], &whole[best - 1]);
        if (best + 1 < n)
            rank[best] = rank_of(m, id[best], id[best + 1], &whole[best]);
    }
    return n;
}

/* A candidate in the heap. It is stale when its place no longer starts that pair. */
struct candidate {
    uint32_t rank;
    int32_t at, whole;
};

struct link {
    int32_t prev, next; /* -1: none */
};

/* Every merge takes one candidate out and puts at most two in, starting from at most n - 1. */
static size_t heap_cap(int n)
{
    return 3 * (size_t)n;
}

static inline bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void push(struct candidate *heap, size_t *n, struct candidate c)
{
    size_t i = (*n)++;
    while (i > 0 && before(&c, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = c;
}

static struct candidate pop(struct candidate *heap, size_t *n)
{
    struct candidate top = heap[0], c = heap[--*n];
    size_t i = 0;
    for (size_t kid = 1; kid < *n; kid = 2 * i + 1) {
        if (kid + 1 < *n && before(&heap[kid + 1], &heap[kid]))
            kid++;
        if (!before(&heap[kid], &c))
            break;
        heap[i] = heap[kid];
        i = kid;
    }
    heap[i] = c;
    return top;
}

static void offer(const struct sl_merges *m, const int32_t *id, int32_t left, int32_t right,
                  struct candidate *heap, size_t *n_heap)
{
    const struct entry *e = find(m, id[left], id[right]);
    if (e)
        push(heap, n_heap, (struct candidate){e->rank, left, e->whole});
}

static int merge_long(const struct sl_merges *m, int32_t *id, int n, struct sl_merge_scratch *s)
{
    if (n > s->cap) {
        void *p =
            realloc(s->p, (size_t)n * sizeof(struct link) + heap_cap(n) * sizeof(struct candidate));
        if (!p)
            return SL_NOMEM;
        s->p = p;
        s->cap = n;
    }
    struct link *link = s->p;
    struct candidate *heap = (struct candidate *)(link + n);
    size_t n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        link[i] = (struct link){i - 1, i + 1 < n ? i + 1 : -1};
    for (int32_t i = 0; i + 1 < n; i++)
        offer(m, id, i, i + 1, heap, &n_heap);
    while (n_heap > 0) {
        struct candidate c = pop(heap, &n_heap);
        int32_t right = id[c.at] < 0 ? -1 : link[c.at].next;
        if (right < 0)
            continue;
        const struct entry *e = find(m, id[c.at], id[right]);
        if (!e || e->whole != c.whole)
            continue;
        id[c.at] = c.whole;
        id[right] = -1; /* swallowed */
        int32_t next = link[c.at].next = link[right].next;
        if (next >= 0) {
            link[next].prev = c.at;
            offer(m, id, c.at, next, heap, &n_heap);
        }
        if (link[c.at].prev >= 0)
            offer(m, id, link[c.at].prev, c.at, heap, &n_heap);
    }
    int kept = 0;
    for (int32_t i = 0; i >= 0; i = link[i].next)
        id[kept++] = id[i];
    return kept;
}

int sl_merge(const struct sl_merges *m, int32_t *id, int n, struct sl_merge_scratch *s)
{
    return n <= SHORT_PIECE ? merge_short(m, id, n) : merge_long(m, id, n, s);
}

void sl_merge_scratch_release(struct sl_merge_scratch *s)
{
    if (!s)
        return;
    free(s->p);
    *s = (struct sl_merge_scratch){0};
}

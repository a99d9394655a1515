#include "engine/batch.h"
#include <stdlib.h>
#include <string.h>

/* Device copies keep the block's layout, so every array starts on a boundary that any backend
 * likes. */
#define BATCH_ALIGN 64

/* A token that the loss counts (target >= 0), or the last position of a generation row (target -1).
 */
struct want {
    int32_t at, target; /* packed position whose logits are wanted; what they should say */
    int32_t index;      /* counted token, in row order; or the row */
};

struct plan {
    int *order;        /* rows by slot, stable */
    int *slot_begin;   /* [n_slots+1] into order */
    int *prefix_len;   /* [n_slots] */
    int *prefix_start; /* [n_slots] */
    int *row_start;    /* [n_rows] packed position of the row's own part */
    struct want *wants;
    int n_wants, n_counted, n_tokens, n_seqs, n_virtual, n_prompts;
    int64_t n_useful;
};

static void plan_release(struct plan *p)
{
    free(p->order);
    free(p->slot_begin);
    free(p->prefix_len);
    free(p->prefix_start);
    free(p->row_start);
    free(p->wants);
}

static int check_row(const struct sl_row *row, int r, const int *slot_v, int n_slots, int vocab,
                     int max_positions, struct sl_err *err)
{
    if (row->slot < 0 || row->slot >= n_slots)
        return sl_err_set(err, SL_SPEC, "row %d: slot %d, but there are %d slots", r, row->slot,
                          n_slots);
    if (row->n < 1)
        return sl_err_set(err, SL_SPEC, "row %d is empty; a row needs at least one token", r);
    if (row->n > max_positions)
        return sl_err_set(err, SL_SPEC,
                          "row %d has %d tokens, more than the model's %d positions; "
                          "lower max_seq_length or set truncate_field",
                          r, row->n, max_positions);
    for (int i = 0; i < row->n; i++) {
        int64_t id = row->id[i];
        if (id >= vocab)
            return sl_err_set(err, SL_SPEC, "row %d: token id %d at %d, but the vocabulary has %d",
                              r, (int)id, i, vocab);
        if (id < 0 && -(id + 1) >= slot_v[row->slot])
            return sl_err_set(
                err, SL_SPEC,
                "row %d: virtual token %lld at %d, but its slot has %d virtual tokens", r,
                (long long)-(id + 1), i, slot_v[row->slot]);
        if (row->target && row->target[i] && (i == 0 || id < 0))
            return sl_err_set(err, SL_SPEC,
                              "row %d: the loss cannot count position %d, which is %s", r, i,
                              i == 0 ? "the first" : "a virtual token");
    }
    return 0;
}

static int check(const struct sl_row *rows, int n_rows, const int *slot_v, int n_slots, int vocab,
                 int max_positions, struct sl_err *err)
{
    if (n_rows < 1 || n_rows > SL_BATCH_MAX_ROWS)
        return sl_err_set(err, SL_SPEC, "a batch of %d rows; allowed are 1 to %d", n_rows,
                          SL_BATCH_MAX_ROWS);
    if (n_slots < 1 || n_slots > SL_BATCH_MAX_SLOTS)
        return sl_err_set(err, SL_SPEC, "a batch of %d prompt slots; allowed are 1 to %d", n_slots,
                          SL_BATCH_MAX_SLOTS);
    int64_t prompts = 0, tokens = 0;
    for (int s = 0; s < n_slots; s++) {
        if (slot_v[s] < 0)
            return sl_err_set(err, SL_SPEC, "slot %d has %d virtual tokens", s, slot_v[s]);
        prompts += slot_v[s];
    }
    for (int r = 0; r < n_rows; r++) {
        int rc = check_row(&rows[r], r, slot_v, n_slots, vocab, max_positions, err);
        if (rc)
            return rc;
        tokens += rows[r].n;
    }
    if (tokens > SL_BATCH_MAX_TOKENS || prompts > SL_BATCH_MAX_TOKENS)
        return sl_err_set(err, SL_SPEC,
                          "a batch of %lld tokens and %lld virtual tokens; at most %d of each fit: "
                          "lower micro_batch_size",
                          (long long)tokens, (long long)prompts, SL_BATCH_MAX_TOKENS);
    return 0;
}

/* Longest common start of a slot's rows, leaving each row at least one token of its own. */
static int common_prefix(const struct sl_row *rows, const int *order, int n)
{
    if (n < 2)
        return 0;
    const struct sl_row *first = &rows[order[0]];
    int len = first->n - 1;
    for (int k = 1; k < n && len > 0; k++) {
        const struct sl_row *row = &rows[order[k]];
        if (len > row->n - 1)
            len = row->n - 1;
        int i = 0;
        while (i < len && row->id[i] == first->id[i])
            i++;
        len = i;
    }
    return len;
}

static int compare_wants(const void *pa, const void *pb)
{
    const struct want *a = pa, *b = pb;
    if (a->at != b->at)
        return a->at < b->at ? -1 : 1;
    if (a->target != b->target)
        return a->target < b->target ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static int count_virtual(const int32_t *id, int from, int to)
{
    int n = 0;
    for (int i = from; i < to; i++)
        n += id[i] < 0;
    return n;
}

/* Decides where everything goes: sets all of *p but wants. */
static int place(const struct sl_row *rows, int n_rows, const int *slot_v, int n_slots, bool share,
                 struct plan *p, struct sl_err *err)
{
    p->order = malloc(sizeof(int) * (size_t)n_rows);
    p->slot_begin = calloc((size_t)n_slots + 1, sizeof(int));
    p->prefix_len = calloc((size_t)n_slots, sizeof(int));
    p->prefix_start = calloc((size_t)n_slots, sizeof(int));
    p->row_start = malloc(sizeof(int) * (size_t)n_rows);
    if (!p->order || !p->slot_begin || !p->prefix_len || !p->prefix_start || !p->row_start)
        return sl_err_set(err, SL_NOMEM, "packing a batch of %d rows", n_rows);
    for (int r = 0; r < n_rows; r++)
        p->slot_begin[rows[r].slot + 1]++;
    for (int s = 0; s < n_slots; s++) {
        p->slot_begin[s + 1] += p->slot_begin[s];
        p->n_prompts += slot_v[s];
    }
    for (int r = 0; r < n_rows; r++) /* prefix_start counts up here, and gets its meaning below */
        p->order[p->slot_begin[rows[r].slot] + p->prefix_start[rows[r].slot]++] = r;
    for (int s = 0; s < n_slots; s++) {
        int b = p->slot_begin[s], n = p->slot_begin[s + 1] - b;
        int len = share ? common_prefix(rows, p->order + b, n) : 0;
        p->prefix_len[s] = len;
        p->prefix_start[s] = p->n_tokens;
        p->n_tokens += len;
        p->n_seqs += n + (len > 0);
        if (len > 0)
            p->n_virtual += count_virtual(rows[p->order[b]].id, 0, len);
        for (int k = b; k < b + n; k++) {
            const struct sl_row *row = &rows[p->order[k]];
            p->row_start[p->order[k]] = p->n_tokens;
            p->n_tokens += row->n - len;
            p->n_useful += row->n;
            p->n_virtual += count_virtual(row->id, len, row->n);
        }
    }
    return 0;
}

static int packed_position(const struct plan *p, const struct sl_row *row, int r, int i)
{
    int len = p->prefix_len[row->slot];
    return i < len ? p->prefix_start[row->slot] + i : p->row_start[r] + i - len;
}

static int collect_wants(const struct sl_row *rows, int n_rows, struct plan *p, struct sl_err *err)
{
    for (int r = 0; r < n_rows; r++) {
        if (!rows[r].target)
            p->n_wants++;
        for (int i = 1; rows[r].target && i < rows[r].n; i++)
            p->n_counted += rows[r].target[i] != 0;
    }
    p->n_wants += p->n_counted;
    p->wants = malloc(sizeof(struct want) * ((size_t)p->n_wants + 1));
    if (!p->wants)
        return sl_err_set(err, SL_NOMEM, "packing a batch of %d rows", n_rows);
    int n = 0, counted = 0;
    for (int r = 0; r < n_rows; r++) {
        const struct sl_row *row = &rows[r];
        if (!row->target)
            p->wants[n++] = (struct want){packed_position(p, row, r, row->n - 1), -1, r};
        for (int i = 1; row->target && i < row->n; i++)
            if (row->target[i])
                p->wants[n++] =
                    (struct want){packed_position(p, row, r, i - 1), row->id[i], counted++};
    }
    qsort(p->wants, (size_t)n, sizeof *p->wants, compare_wants);
    return 0;
}

void *sl_batch_take(char *base, size_t *used, size_t n, size_t size)
{
    size_t at = *used;
    *used = (at + n * size + BATCH_ALIGN - 1) / BATCH_ALIGN * BATCH_ALIGN;
    return base ? base + at : NULL;
}

/* Array addresses within one block; base NULL only counts. Counts in *b are set; n_out and
 * n_entries are upper bounds at this time. */
static size_t lay_out(struct sl_batch *b, char *base)
{
    size_t used = 0;
#define TAKE(field, n) b->field = sl_batch_take(base, &used, (size_t)(n), sizeof *b->field)
    TAKE(seq, b->n_seqs);
    TAKE(out_seq, b->n_seqs);
    TAKE(src, b->n_tokens);
    TAKE(pos, b->n_tokens);
    TAKE(visible, b->n_tokens);
    TAKE(out, b->n_out);
    TAKE(out_pos, b->n_out);
    TAKE(out_visible, b->n_out);
    TAKE(entry_out, b->n_entries);
    TAKE(entry_target, b->n_entries);
    TAKE(entry_weight, b->n_entries);
    TAKE(entry_slot, b->n_entries);
    TAKE(virtual_pos, b->n_virtual);
    TAKE(grad_ptr, b->n_prompts + 1);
    TAKE(grad_list, b->n_virtual);
    TAKE(slot_prompts, b->n_slots + 1);
    TAKE(row_seq, b->n_rows);
    TAKE(row_n, b->n_rows);
    TAKE(row_entry_ptr, b->n_rows + 1);
    TAKE(row_entry, b->n_counted);
    TAKE(row_out, b->n_rows);
#undef TAKE
    return used;
}

size_t sl_batch_bytes(const struct sl_batch *counts)
{
    struct sl_batch b = *counts;
    return lay_out(&b, NULL);
}

/* Packs tokens from..to of a row at packed position at, as one sequence. */
static void fill_seq(struct sl_batch *b, int at, const struct sl_row *row, int from, int to,
                     int prefix_start, int *n_seqs)
{
    int n = to - from;
    b->seq[(*n_seqs)++] = (struct sl_seq){.q_start = at,
                                          .q_len = n,
                                          .kv_start = at,
                                          .kv_len = n,
                                          .prefix_start = prefix_start,
                                          .prefix_len = from};
    for (int i = 0; i < n; i++) {
        int32_t id = row->id[from + i];
        b->src[at + i] = id >= 0 ? id : id - b->slot_prompts[row->slot];
        b->pos[at + i] = from + i;
        b->visible[at + i] = i + 1;
    }
}

static void fill_sequences(struct sl_batch *b, const struct sl_row *rows, const struct plan *p)
{
    int n_seqs = 0;
    for (int s = 0; s < b->n_slots; s++) {
        int len = p->prefix_len[s];
        if (len > 0)
            fill_seq(b, p->prefix_start[s], &rows[p->order[p->slot_begin[s]]], 0, len, 0, &n_seqs);
        for (int k = p->slot_begin[s]; k < p->slot_begin[s + 1]; k++) {
            int r = p->order[k];
            b->row_seq[r] = n_seqs;
            b->row_n[r] = rows[r].n;
            fill_seq(b, p->row_start[r], &rows[r], len, rows[r].n, len > 0 ? p->prefix_start[s] : 0,
                     &n_seqs);
        }
    }
}

static int slot_of(const struct sl_batch *b, const struct plan *p, int at)
{
    int lo = 0, hi = b->n_slots - 1;
    while (
        lo <
        hi) { /* the last slot that starts at or before it; empty slots start where the next does */
        int mid = (lo + hi + 1) / 2;
        if (p->prefix_start[mid] <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

static void fill_outs(struct sl_batch *b, const struct sl_row *rows, const struct plan *p,
                      const int64_t *slot_total)
{
    int n_out = 0, n_entries = 0;
    for (int r = 0; r < b->n_rows; r++)
        b->row_out[r] = -1;
    for (int k = 0, times = 0; k < p->n_wants; k++) {
        const struct want *w = &p->wants[k];
        if (n_out == 0 || b->out[n_out - 1] != w->at) {
            b->out[n_out] = w->at;
            b->out_pos[n_out] = b->pos[w->at];
            b->out_visible[n_out++] = b->visible[w->at];
            times = 0;
        }
        if (w->target < 0) {
            b->row_out[w->index] = n_out - 1;
            continue;
        }
        if (times == 0 || b->entry_target[n_entries - 1] != w->target) {
            b->entry_out[n_entries] = n_out - 1;
            b->entry_target[n_entries] = w->target;
            b->entry_slot[n_entries++] = slot_of(b, p, w->at);
            times = 0;
        }
        int64_t divisor = slot_total ? slot_total[b->entry_slot[n_entries - 1]] : p->n_counted;
        b->entry_weight[n_entries - 1] = (float)((double)++times / (double)divisor);
        b->row_entry[w->index] = n_entries - 1;
    }
    b->n_out = n_out;
    b->n_entries = n_entries;
    b->row_entry_ptr[0] = 0;
    for (int r = 0; r < b->n_rows; r++) {
        int n = 0;
        for (int i = 1; rows[r].target && i < rows[r].n; i++)
            n += rows[r].target[i] != 0;
        b->row_entry_ptr[r + 1] = b->row_entry_ptr[r] + n;
    }
    for (int s = 0, q = 0; s < b->n_seqs; s++) {
        struct sl_seq seq = b->seq[s];
        int begin = q;
        while (q < n_out && b->out[q] < seq.q_start + seq.q_len)
            q++;
        if (q == begin)
            continue;
        seq.q_start = begin;
        seq.q_len = q - begin;
        seq.kv_len = b->out_visible[q - 1];
        b->out_seq[b->n_out_seqs++] = seq;
    }
}

static void fill_virtual(struct sl_batch *b)
{
    int n = 0;
    memset(b->grad_ptr, 0, sizeof(int32_t) * ((size_t)b->n_prompts + 1));
    for (int t = 0; t < b->n_tokens; t++)
        if (b->src[t] < 0) {
            b->virtual_pos[n++] = t;
            b->grad_ptr[-(b->src[t] + 1) + 1]++;
        }
    for (int p = 0; p < b->n_prompts; p++)
        b->grad_ptr[p + 1] += b->grad_ptr[p];
    /* grad_ptr[p] serves as the cursor of p, which leaves it at the start of p+1: moved back
     * afterwards */
    for (int k = 0; k < n; k++)
        b->grad_list[b->grad_ptr[-(b->src[b->virtual_pos[k]] + 1)]++] = k;
    for (int p = b->n_prompts; p > 0; p--)
        b->grad_ptr[p] = b->grad_ptr[p - 1];
    b->grad_ptr[0] = 0;
}

int sl_batch_pack(const struct sl_row *rows, int n_rows, const int *slot_v, int n_slots, int vocab,
                  int max_positions, bool share, const int64_t *slot_total, struct sl_batch *ret_batch,
                  struct sl_err *err)
{
    struct plan p = {0};
    struct sl_batch b = {.n_rows = n_rows, .n_slots = n_slots};
    int rc = check(rows, n_rows, slot_v, n_slots, vocab, max_positions, err);
    if (!rc)
        rc = place(rows, n_rows, slot_v, n_slots, share, &p, err);
    if (!rc)
        rc = collect_wants(rows, n_rows, &p, err);
    if (!rc) {
        b.n_prompts = p.n_prompts;
        b.n_tokens = p.n_tokens;
        b.n_seqs = p.n_seqs;
        b.n_virtual = p.n_virtual;
        b.n_counted = p.n_counted;
        b.n_useful = p.n_useful;
        b.n_out = p.n_wants;
        b.n_entries = p.n_counted;
        b.memory_bytes = lay_out(&b, NULL);
        b.memory = calloc(1, b.memory_bytes);
        if (!b.memory)
            rc = sl_err_set(err, SL_NOMEM, "packing a batch of %d rows, %d positions", n_rows,
                            p.n_tokens);
    }
    if (!rc) {
        lay_out(&b, b.memory);
        for (int s = 0; s < n_slots; s++)
            b.slot_prompts[s + 1] = b.slot_prompts[s] + slot_v[s];
        fill_sequences(&b, rows, &p);
        fill_outs(&b, rows, &p, slot_total);
        fill_virtual(&b);
        *ret_batch = b;
    }
    plan_release(&p);
    return rc;
}

void sl_batch_release(struct sl_batch *b)
{
    if (!b)
        return;
    free(b->memory);
    *b = (struct sl_batch){0};
}

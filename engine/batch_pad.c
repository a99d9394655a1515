#include "engine/batch.h"
#include <stdlib.h>
#include <string.h>

/* n rounded up to a multiple of the largest power of two that is at most n / parts. */
static int round_up(int n, int parts)
{
    int unit = 1;
    while (unit <= n / parts / 2)
        unit *= 2;
    return (n + unit - 1) / unit * unit;
}

static size_t lay_out(struct sl_batch *b, char *base)
{
    size_t used = 0;
#define TAKE(field, n) b->field = sl_batch_take(base, &used, (size_t)(n), sizeof *b->field)
    TAKE(seq, b->n_seqs);
    TAKE(out_seq, b->n_out_seqs);
    TAKE(src, b->n_tokens);
    TAKE(pos, b->n_tokens);
    TAKE(visible, b->n_tokens);
    TAKE(out, b->n_out);
    TAKE(out_pos, b->n_out);
    TAKE(out_visible, b->n_out);
    TAKE(entry_out, b->n_entries);
    TAKE(entry_target, b->n_entries);
    TAKE(entry_weight, b->n_entries);
    TAKE(virtual_pos, b->n_virtual);
    TAKE(grad_ptr, b->n_prompts + 1);
    TAKE(grad_list, b->n_virtual);
#undef TAKE
    return used;
}

/* The row of token 0 behind everything, whose last positions are the out rows that were added; nothing is counted. */
static void fill_up(struct sl_batch *b, const struct sl_batch *from)
{
    int n = b->n_tokens - from->n_tokens, outs = b->n_out - from->n_out;
    struct sl_seq seq = {.q_start = from->n_tokens, .q_len = n, .kv_start = from->n_tokens, .kv_len = n};
    b->seq[from->n_seqs] = seq;
    for (int i = 0; i < n; i++)
        b->visible[from->n_tokens + i] = i + 1; /* src and pos are 0 */
    seq.q_start = from->n_out;
    seq.q_len = outs;
    b->out_seq[from->n_out_seqs] = seq;
    for (int i = 0; i < outs; i++) {
        b->out[from->n_out + i] = b->n_tokens - outs + i;
        b->out_visible[from->n_out + i] = n - outs + i + 1;
    }
    for (int e = from->n_entries; e < b->n_entries; e++)
        b->entry_out[e] = b->n_out - 1;
}

void sl_batch_pad_counts(const struct sl_batch *from, struct sl_batch *ret_counts)
{
    struct sl_batch b = {.n_slots = from->n_slots,
                         .n_prompts = from->n_prompts,
                         .n_virtual = from->n_virtual,
                         .n_seqs = from->n_seqs + 1,
                         .n_out_seqs = from->n_out_seqs + 1,
                         .n_counted = from->n_counted,
                         .n_useful = from->n_useful};
    b.n_out = round_up(from->n_out + 1, SL_PAD_OUT_PARTS);
    b.n_entries = from->n_entries <= b.n_out ? b.n_out : round_up(from->n_entries, SL_PAD_OUT_PARTS);
    b.n_tokens = round_up(from->n_tokens + b.n_out - from->n_out, SL_PAD_TOKEN_PARTS);
    b.memory_bytes = lay_out(&b, NULL);
    *ret_counts = b;
}

void sl_batch_pad_bound(const struct sl_batch *most, struct sl_batch *ret_counts)
{
    struct sl_batch b = *most;
    b.n_tokens += (b.n_out + 1) / SL_PAD_OUT_PARTS + 1; /* fewer out rows may be filled up with more */
    sl_batch_pad_counts(&b, ret_counts);
}

int sl_batch_pad(const struct sl_batch *from, struct sl_batch *ret_batch, struct sl_err *err)
{
    struct sl_batch b;
    sl_batch_pad_counts(from, &b);
    b.memory = calloc(1, b.memory_bytes);
    if (!b.memory)
        return sl_err_set(err, SL_NOMEM, "padding a batch of %d positions", from->n_tokens);
    lay_out(&b, b.memory);
#define COPY(field, n) memcpy(b.field, from->field, sizeof *b.field * (size_t)(n))
    COPY(seq, from->n_seqs);
    COPY(out_seq, from->n_out_seqs);
    COPY(src, from->n_tokens);
    COPY(pos, from->n_tokens);
    COPY(visible, from->n_tokens);
    COPY(out, from->n_out);
    COPY(out_pos, from->n_out);
    COPY(out_visible, from->n_out);
    COPY(entry_out, from->n_entries);
    COPY(entry_target, from->n_entries);
    COPY(entry_weight, from->n_entries);
    COPY(virtual_pos, from->n_virtual);
    COPY(grad_ptr, from->n_prompts + 1);
    COPY(grad_list, from->n_virtual);
#undef COPY
    fill_up(&b, from);
    *ret_batch = b;
    return 0;
}

/* Packing: rows of tokens become one sequence of positions without padding, shared prefixes once.
 *
 * Prefix of a slot: the longest run of identical ids (virtual indices included) at the start of all
 * its rows in the batch, at most the shortest row - 1; a slot with a single row has none. It is
 * packed once per slot, before the slot's rows; slots follow each other in order, rows of a slot
 * too. Everything here is host memory in one block; model.c uploads that block as it is. */
#ifndef SL_ENGINE_BATCH_H
#define SL_ENGINE_BATCH_H
#include "engine/ops.h"

#define SL_BATCH_MAX_ROWS 65536
#define SL_BATCH_MAX_TOKENS (1 << 22)
#define SL_BATCH_MAX_SLOTS 1024

/* One rendered row. id[i] >= 0 is a token, < 0 is virtual token -(id[i]+1) of the row's slot.
 * target[i] != 0: token i is counted by the loss (never a virtual token, never position 0). target
 * NULL (generation): nothing is counted, and the row's last position is an out row. All borrowed.
 */
struct sl_row {
    int slot, n;
    const int32_t *id;
    const unsigned char *target;
};

struct sl_batch {
    int n_rows, n_slots, n_prompts; /* n_prompts: virtual tokens of all slots together */
    int *slot_prompts;              /* [n_slots+1] first prompt row of each slot */

    int n_tokens;       /* packed positions */
    int32_t *src;       /* [n_tokens] token id, or -(prompt row + 1), rows counted over all slots */
    int32_t *pos;       /* [n_tokens] index in the unpacked row */
    int n_seqs;         /* prefixes and rows */
    struct sl_seq *seq; /* [n_seqs], queries = keys = packed positions */
    int32_t *visible;   /* [n_tokens] */
    int *row_seq;       /* [n_rows] sequence of the row's own part, which names its prefix */
    int *row_n;         /* [n_rows] its length, unpacked */

    /* Rows with loss: packed positions (ascending, distinct) whose logits are needed, and what they
     * should say. Several entries may name one position (a shared position that predicts each row's
     * next token). Identical (position, target) pairs are merged, weights added. */
    int n_out;
    int32_t *out;     /* [n_out] packed position */
    int32_t *out_pos; /* [n_out] pos of it */
    int n_out_seqs;
    struct sl_seq *out_seq; /* queries are the n_out gathered rows, keys the packed positions: the
                             * last layer. Sequences without out rows are left out, keys after the
                             * last one seen cut off. */
    int32_t *out_visible;   /* [n_out] */
    int n_entries;
    int32_t *entry_out; /* [n_entries] index into out, ascending */
    int32_t *entry_target;
    float *entry_weight; /* how often, divided by n_counted (or by the caller's total) */
    int32_t *entry_slot;
    int n_counted;    /* counted tokens before merging */
    int64_t n_useful; /* virtual and text tokens of all rows, unpacked: the field's tokens/s */
    /* Where each (row, counted token) went, in row order: for per-row likelihoods. */
    int *row_entry_ptr; /* [n_rows+1] */
    int32_t *row_entry; /* [n_counted] index of an entry */
    int32_t *row_out;   /* [n_rows] index into out of a row with target NULL, else -1 */

    /* Virtual positions, for the gradient: prompt row p appears at list[ptr[p]..ptr[p+1]) into
     * virtual[], virtual[] are packed positions (ascending, distinct). */
    int n_virtual;
    int32_t *virtual_pos; /* [n_virtual] */
    int32_t *grad_ptr;    /* [n_prompts+1] */
    int32_t *grad_list;   /* [n_virtual] index into virtual_pos */

    void *memory; /* one block behind all arrays */
    size_t memory_bytes;
};

/* slot_v [n_slots]: virtual tokens of each slot. share false: no prefixes. slot_total [n_slots]:
 * divisor of the weights of each slot's entries (independent trials, or micro-batches of one global
 * batch); NULL: n_counted for all. SL_SPEC for a virtual index >= V, a token id out of [0, vocab),
 * an empty row or one longer than max_positions, or a limit above; names the row. */
int sl_batch_pack(const struct sl_row *rows, int n_rows, const int *slot_v, int n_slots, int vocab,
                  int max_positions, bool share, const int64_t *slot_total, struct sl_batch *ret_batch,
                  struct sl_err *err);
/* memory_bytes of a batch with these counts. */
size_t sl_batch_bytes(const struct sl_batch *counts);
void sl_batch_release(struct sl_batch *b); /* NULL-safe */
/* The address of n elements of a block whose first *used bytes are taken, and takes them; base NULL only counts. */
void *sl_batch_take(char *base, size_t *used, size_t n, size_t size);

/* A copy whose numbers of positions, out rows and entries are rounded up, so that batches of like rows have equal
 * numbers and a captured step serves them all: one row more behind the others, of token 0, without prefix, with out rows
 * but only entries of weight 0. The first entries, out rows and positions are from's. It has what a pass needs: no
 * entry_slot, slot_prompts and nothing by row. from has out rows. */
#define SL_PAD_TOKEN_PARTS 16 /* positions grow by a sixteenth at most, beside what the added out rows need */
#define SL_PAD_OUT_PARTS 4
/* Its counts and memory_bytes alone; and what those of no batch with at most these counts exceed. */
void sl_batch_pad_counts(const struct sl_batch *from, struct sl_batch *ret_counts);
void sl_batch_pad_bound(const struct sl_batch *most, struct sl_batch *ret_counts);
int sl_batch_pad(const struct sl_batch *from, struct sl_batch *ret_batch, struct sl_err *err);

#endif

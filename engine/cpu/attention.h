/* What attention's forward and backward share.
 *
 * The work is cut into (sequence, key/value head): its keys and values, prefix first, are copied
 * into one padded block, and its query rows are those of all heads that share the key head,
 * position by position: row i*group + h. */
#ifndef SL_ENGINE_CPU_ATTENTION_H
#define SL_ENGINE_CPU_ATTENTION_H
#include "engine/cpu/cpu.h"

#define SL_CPU_ATT_ROWS 192 /* query rows handled at a time */
#define SL_CPU_ATT_PAD 16   /* columns of every block are padded to this with zeros */

static inline int sl_cpu_pad(int n)
{
    return (n + SL_CPU_ATT_PAD - 1) / SL_CPU_ATT_PAD * SL_CPU_ATT_PAD;
}

/* Keys that query row r (of head group `group`) of sequence s sees, prefix included. */
static inline int sl_cpu_seen(const struct sl_attention *a, const struct sl_seq *s, int group,
                              int r)
{
    return s->prefix_len + a->visible[s->q_start + r / group];
}

/* Rows [0, n) of a sequence's keys or values (its prefix, then its own) of one head. plain [n,
 * pad(head_dim)] and turned [head_dim, pad(n)] may each be NULL. */
void sl_cpu_att_keys(const struct sl_attention *a, const struct sl_seq *s, int kv_head,
                     const float *x, int64_t ld, int n, float *plain, float *turned);
/* Query rows [r0, r0+n) of a matrix shaped like q, as [n, pad(head_dim)], times f. */
void sl_cpu_att_rows(const struct sl_attention *a, const struct sl_seq *s, int kv_head, int r0,
                     int n, const float *x, int64_t ld, float f, float *out);

#endif

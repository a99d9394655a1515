/* Packing: what a reader of the packed form sees must be what the rows say. */
#include "base/rng.h"
#include "engine/batch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB 6 /* small, so that prefixes and (position, target) pairs meet by chance */
#define MAX_N 24
#define MAX_ROWS 12
#define MAX_SLOTS 4
#define ROUNDS 3000

struct rows {
    struct sl_row row[MAX_ROWS];
    int32_t id[MAX_ROWS][MAX_N];
    unsigned char target[MAX_ROWS][MAX_N];
    int n, n_slots, slot_v[MAX_SLOTS];
};

static int below(struct sl_rng *rng, int n)
{
    return (int)sl_rng_below(rng, (uint64_t)n);
}

/* Rows of a slot start alike for a random length; virtual tokens come anywhere, sometimes twice. */
static void random_rows(struct sl_rng *rng, struct rows *r)
{
    int32_t start[MAX_SLOTS][MAX_N];
    memset(r, 0, sizeof *r);
    r->n = 1 + below(rng, MAX_ROWS);
    r->n_slots = 1 + below(rng, MAX_SLOTS);
    for (int s = 0; s < r->n_slots; s++) {
        r->slot_v[s] = below(rng, 5);
        for (int i = 0; i < MAX_N; i++)
            start[s][i] = r->slot_v[s] && below(rng, 3) == 0 ? -1 - below(rng, r->slot_v[s])
                                                             : below(rng, VOCAB);
    }
    for (int k = 0; k < r->n; k++) {
        struct sl_row *row = &r->row[k];
        *row =
            (struct sl_row){below(rng, r->n_slots), 1 + below(rng, MAX_N), r->id[k], r->target[k]};
        int same = below(rng, 4) ? below(rng, MAX_N) : MAX_N;
        for (int i = 0; i < row->n; i++) {
            int v = r->slot_v[row->slot];
            r->id[k][i] = i < same              ? start[row->slot][i]
                          : v && !below(rng, 6) ? -1 - below(rng, v)
                                                : below(rng, VOCAB);
            r->target[k][i] = i > 0 && r->id[k][i] >= 0 && below(rng, 3) == 0;
        }
        if (below(rng, 8) == 0)
            row->target = NULL;
        else if (below(rng, 8) == 0)
            memset(r->target[k], 0, MAX_N);
    }
}

static int expected_prefix(const struct rows *r, int slot, bool share)
{
    int len = MAX_N, members = 0;
    for (int a = 0; a < r->n; a++)
        for (int b = 0; b < r->n; b++) {
            if (r->row[a].slot != slot || r->row[b].slot != slot)
                continue;
            members += a == b;
            int i = 0;
            while (i < r->row[a].n - 1 && i < r->row[b].n - 1 && r->id[a][i] == r->id[b][i])
                i++;
            len = i < len ? i : len;
        }
    return share && members > 1 ? len : 0;
}

/* Packed position of token i of a row. */
static int position(const struct sl_batch *b, int row, int i)
{
    const struct sl_seq *s = &b->seq[b->row_seq[row]];
    return i < s->prefix_len ? s->prefix_start + i : s->q_start + i - s->prefix_len;
}

static void check_unpacked(const struct rows *r, const struct sl_batch *b, bool share)
{
    int tokens = 0, seqs = 0, next = 0;
    int64_t useful = 0;
    for (int s = 0; s < r->n_slots; s++) {
        int len = expected_prefix(r, s, share);
        tokens += len;
        seqs += len > 0;
        for (int k = 0; k < r->n; k++)
            if (r->row[k].slot == s) {
                tokens += r->row[k].n - len;
                seqs++;
                assert_int_equal(b->seq[b->row_seq[k]].prefix_len, len);
            }
    }
    assert_int_equal(b->n_tokens, tokens);
    assert_int_equal(b->n_seqs, seqs);
    for (int s = 0; s < b->n_seqs; s++) {
        const struct sl_seq *q = &b->seq[s];
        assert_int_equal(q->q_start, next);
        assert_int_equal(q->kv_start, q->q_start);
        assert_int_equal(q->kv_len, q->q_len);
        assert_true(q->q_len > 0);
        assert_true(q->prefix_len == 0 || q->prefix_start + q->prefix_len <= q->q_start);
        for (int i = 0; i < q->q_len; i++)
            assert_int_equal(b->visible[next + i], i + 1);
        next += q->q_len;
    }
    assert_int_equal(next, b->n_tokens);
    for (int k = 0; k < r->n; k++) {
        const struct sl_row *row = &r->row[k];
        assert_int_equal(b->seq[b->row_seq[k]].prefix_len + b->seq[b->row_seq[k]].q_len, row->n);
        for (int i = 0; i < row->n; i++) {
            int at = position(b, k, i);
            int32_t src = b->src[at];
            assert_int_equal(b->pos[at], i);
            assert_int_equal(src < 0 ? src + b->slot_prompts[row->slot] : src, row->id[i]);
        }
        useful += row->n;
    }
    assert_int_equal(b->n_useful, useful);
}

static void check_loss(const struct rows *r, const struct sl_batch *b, const int64_t *slot_total)
{
    int counted = 0, times[MAX_ROWS * MAX_N] = {0};
    bool wanted[MAX_ROWS * MAX_N] = {0};
    for (int k = 0; k < r->n; k++) {
        const struct sl_row *row = &r->row[k];
        assert_int_equal(b->row_entry_ptr[k], counted);
        for (int i = 1; row->target && i < row->n; i++) {
            if (!row->target[i])
                continue;
            int e = b->row_entry[counted++];
            assert_in_range(e, 0, b->n_entries - 1);
            assert_int_equal(b->out[b->entry_out[e]], position(b, k, i - 1));
            assert_int_equal(b->entry_target[e], row->id[i]);
            assert_int_equal(b->entry_slot[e], row->slot);
            times[e]++;
            wanted[b->entry_out[e]] = true;
        }
        if (row->target)
            assert_int_equal(b->row_out[k], -1);
        else {
            assert_int_equal(b->out[b->row_out[k]], position(b, k, row->n - 1));
            wanted[b->row_out[k]] = true;
        }
    }
    assert_int_equal(b->row_entry_ptr[r->n], counted);
    assert_int_equal(b->n_counted, counted);
    for (int e = 0; e < b->n_entries; e++) {
        assert_true(times[e] > 0);
        assert_float_equal(b->entry_weight[e],
                           times[e] / (double)(slot_total ? slot_total[b->entry_slot[e]] : counted),
                           1e-7);
        if (e > 0) /* ascending, and no pair twice */
            assert_true(b->entry_out[e] > b->entry_out[e - 1] ||
                        (b->entry_out[e] == b->entry_out[e - 1] &&
                         b->entry_target[e] > b->entry_target[e - 1]));
    }
    for (int o = 0; o < b->n_out; o++) {
        assert_true(wanted[o]);
        assert_true(o == 0 || b->out[o] > b->out[o - 1]);
        assert_int_equal(b->out_pos[o], b->pos[b->out[o]]);
    }
}

static void check_out_seqs(const struct sl_batch *b)
{
    int next = 0;
    for (int s = 0; s < b->n_out_seqs; s++) {
        const struct sl_seq *o = &b->out_seq[s];
        assert_int_equal(o->q_start, next);
        assert_true(o->q_len > 0);
        for (; next < o->q_start + o->q_len; next++) {
            const struct sl_seq *own = b->seq;
            while (b->out[next] >= own->q_start + own->q_len)
                own++;
            assert_int_equal(o->kv_start, own->kv_start);
            assert_int_equal(o->prefix_len, own->prefix_len);
            assert_int_equal(o->prefix_start, own->prefix_start);
            assert_int_equal(b->out_visible[next], b->visible[b->out[next]]);
            assert_in_range(b->out_visible[next], 1, o->kv_len);
            assert_in_range(o->kv_len, 1, own->kv_len);
        }
    }
    assert_int_equal(next, b->n_out);
}

static void check_virtual(const struct sl_batch *b)
{
    int n = 0, seen = 0;
    for (int t = 0; t < b->n_tokens; t++)
        if (b->src[t] < 0) {
            assert_true(n < b->n_virtual);
            assert_int_equal(b->virtual_pos[n], t);
            n++;
        }
    assert_int_equal(n, b->n_virtual);
    assert_int_equal(b->grad_ptr[0], 0);
    for (int p = 0; p < b->n_prompts; p++)
        for (int i = b->grad_ptr[p]; i < b->grad_ptr[p + 1]; i++, seen++) {
            assert_int_equal(b->src[b->virtual_pos[b->grad_list[i]]], -(p + 1));
            assert_true(i == b->grad_ptr[p] || b->grad_list[i] > b->grad_list[i - 1]);
        }
    assert_int_equal(seen, b->n_virtual);
}

static void test_random_rows(void **state)
{
    (void)state;
    struct sl_rng rng = sl_rng_new(11, 0);
    struct sl_err err = SL_ERR_INIT;
    int with_prefix = 0, merged = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct rows r;
        struct sl_batch b;
        random_rows(&rng, &r);
        bool share = below(&rng, 4) > 0;
        int64_t totals[MAX_SLOTS], *total = below(&rng, 3) ? NULL : totals;
        for (int s = 0; s < MAX_SLOTS; s++)
            totals[s] = 1000 + s;
        assert_int_equal(
            sl_batch_pack(r.row, r.n, r.slot_v, r.n_slots, VOCAB, MAX_N, share, total, &b, &err),
            0);
        check_unpacked(&r, &b, share);
        check_loss(&r, &b, total);
        check_out_seqs(&b);
        check_virtual(&b);
        for (int s = 0; s < b.n_seqs; s++)
            with_prefix += b.seq[s].prefix_len > 0;
        merged += b.n_entries < b.n_counted;
        sl_batch_release(&b);
    }
    assert_true(with_prefix > ROUNDS / 2); /* the interesting cases did occur */
    assert_true(merged > ROUNDS / 10);
}

static void pack(const struct sl_row *rows, int n, const int *v, int n_slots,
                 struct sl_batch *ret_batch)
{
    struct sl_err err = SL_ERR_INIT;
    if (sl_batch_pack(rows, n, v, n_slots, 100, 64, true, 0, ret_batch, &err))
        fail_msg("%s", err.msg);
}

static void test_identical_rows_leave_each_its_last_token(void **state)
{
    (void)state;
    const int32_t id[] = {1, -1, -2, 7, 8};
    const unsigned char target[] = {0, 0, 0, 0, 1};
    const struct sl_row rows[] = {{0, 5, id, target}, {0, 5, id, target}, {0, 5, id, target}};
    const int v[] = {2};
    struct sl_batch b;
    pack(rows, 3, v, 1, &b);
    assert_int_equal(b.n_tokens, 4 + 3);
    assert_int_equal(b.n_seqs, 4);
    assert_int_equal(b.n_out, 1); /* the prefix's last position says all three */
    assert_int_equal(b.out[0], 3);
    assert_int_equal(b.n_entries, 1);
    assert_float_equal(b.entry_weight[0], 1, 0);
    assert_int_equal(b.n_out_seqs, 1);
    assert_int_equal(b.out_seq[0].prefix_len, 0);
    assert_int_equal(b.n_virtual, 2);
    sl_batch_release(&b);
}

static void test_shared_position_predicts_each_rows_next_token(void **state)
{
    (void)state;
    const int32_t a[] = {1, -1, 5, 9}, c[] = {1, -1, 6, 9}, d[] = {1, -1, 6, 8};
    const unsigned char target[] = {0, 0, 1, 1};
    const struct sl_row rows[] = {{0, 4, a, target}, {0, 4, c, target}, {0, 4, d, target}};
    const int v[] = {1};
    struct sl_batch b;
    pack(rows, 3, v, 1, &b);
    assert_int_equal(b.n_tokens, 2 + 3 * 2);
    assert_int_equal(b.n_out, 1 + 3);
    assert_int_equal(b.n_entries, 2 + 3);
    assert_int_equal(b.out[0], 1);
    assert_int_equal(b.entry_target[0], 5);
    assert_float_equal(b.entry_weight[0], 1 / 6.0, 1e-7);
    assert_int_equal(b.entry_target[1], 6);
    assert_float_equal(b.entry_weight[1], 2 / 6.0, 1e-7);
    sl_batch_release(&b);
}

static void test_slots_of_different_v_are_numbered_on(void **state)
{
    (void)state;
    const int32_t a[] = {-1, -2, -3, 4}, c[] = {-1, -2, 4};
    const struct sl_row rows[] = {{2, 3, c, NULL}, {0, 4, a, NULL}};
    const int v[] = {3, 7, 2}; /* slot 1 has no rows */
    struct sl_batch b;
    pack(rows, 2, v, 3, &b);
    const int32_t src[] = {-1, -2, -3, 4, -11, -12, 4};
    assert_int_equal(b.n_prompts, 12);
    assert_memory_equal(b.src, src, sizeof src);
    assert_int_equal(b.row_out[0], 1);
    assert_int_equal(b.row_out[1], 0);
    assert_int_equal(b.grad_ptr[3], 3);
    assert_int_equal(b.grad_ptr[10], 3);
    assert_int_equal(b.grad_ptr[12], 5);
    sl_batch_release(&b);
}

static void test_nothing_counted(void **state)
{
    (void)state;
    const int32_t id[] = {1, -1, 3};
    const unsigned char none[3] = {0};
    const struct sl_row row = {0, 3, id, none};
    const int v[] = {1};
    struct sl_batch b;
    pack(&row, 1, v, 1, &b);
    assert_int_equal(b.n_tokens, 3);
    assert_int_equal(b.n_out, 0);
    assert_int_equal(b.n_entries, 0);
    assert_int_equal(b.n_out_seqs, 0);
    sl_batch_release(&b);
}

static void refuse(const struct sl_row *rows, int n, const int *v, int n_slots, const char *says)
{
    struct sl_batch b, before;
    struct sl_err err = SL_ERR_INIT;
    memset(&b, 0x5a, sizeof b);
    before = b;
    assert_int_equal(sl_batch_pack(rows, n, v, n_slots, 10, 4, true, 0, &b, &err), SL_SPEC);
    assert_int_equal(err.code, SL_SPEC);
    assert_memory_equal(&b, &before, sizeof b);
    if (!strstr(err.msg, says))
        fail_msg("'%s' is not in: %s", says, err.msg);
}

static void test_refusals_name_the_row(void **state)
{
    (void)state;
    const int32_t good[] = {1, -1, 2, 3, 4}, high[] = {1, 10}, beyond[] = {-3},
                  least[] = {INT32_MIN};
    const unsigned char first[] = {1, 0, 0, 0}, at_virtual[] = {0, 1, 0, 0}, fine[] = {0, 0, 1, 1};
    const int v[] = {2}, negative[] = {-1};
    struct sl_row rows[] = {{0, 4, good, fine}, {0, 4, good, fine}};
    refuse(rows, 0, v, 1, "0 rows");
    refuse(rows, SL_BATCH_MAX_ROWS + 1, v, 1, "65537 rows");
    refuse(rows, 2, v, 0, "0 prompt slots");
    refuse(rows, 2, negative, 1, "slot 0 has -1");
    rows[1].slot = 1;
    refuse(rows, 2, v, 1, "row 1: slot 1");
    rows[1] = (struct sl_row){0, 5, good, NULL};
    refuse(rows, 2, v, 1, "row 1 has 5 tokens, more than the model's 4");
    rows[1] = (struct sl_row){0, 0, good, NULL};
    refuse(rows, 2, v, 1, "row 1 is empty");
    rows[1] = (struct sl_row){0, 2, high, NULL};
    refuse(rows, 2, v, 1, "row 1: token id 10 at 1");
    rows[1] = (struct sl_row){0, 1, beyond, NULL};
    refuse(rows, 2, v, 1, "row 1: virtual token 2 at 0");
    rows[1] = (struct sl_row){0, 1, least, NULL};
    refuse(rows, 2, v, 1, "row 1: virtual token 2147483647");
    rows[1] = (struct sl_row){0, 4, good, first};
    refuse(rows, 2, v, 1, "row 1: the loss cannot count position 0");
    rows[1] = (struct sl_row){0, 4, good, at_virtual};
    refuse(rows, 2, v, 1, "row 1: the loss cannot count position 1, which is a virtual token");
}

static void test_too_many_tokens(void **state)
{
    (void)state;
    int n = SL_BATCH_MAX_TOKENS / 1024 + 1;
    static int32_t id[1024];
    struct sl_row *rows = calloc((size_t)n, sizeof *rows);
    const int v[] = {0};
    struct sl_batch b;
    struct sl_err err = SL_ERR_INIT;
    for (int r = 0; r < n; r++)
        rows[r] = (struct sl_row){0, 1024, id, NULL};
    assert_int_equal(sl_batch_pack(rows, n, v, 1, 10, 1024, true, 0, &b, &err), SL_SPEC);
    assert_non_null(strstr(err.msg, "lower micro_batch_size"));
    assert_int_equal(sl_batch_pack(rows, n - 1, v, 1, 10, 1024, true, 0, &b, NULL), 0);
    sl_batch_release(&b);
    sl_batch_release(&b); /* again: empty */
    sl_batch_release(NULL);
    free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_rows),
        cmocka_unit_test(test_identical_rows_leave_each_its_last_token),
        cmocka_unit_test(test_shared_position_predicts_each_rows_next_token),
        cmocka_unit_test(test_slots_of_different_v_are_numbered_on),
        cmocka_unit_test(test_nothing_counted),
        cmocka_unit_test(test_refusals_name_the_row),
        cmocka_unit_test(test_too_many_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

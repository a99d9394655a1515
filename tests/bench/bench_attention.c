/* Attention alone, forward and backward, at the shapes of the models and profiles that training is measured with.
 *
 *   bench_attention DEVICE [MODEL [PROFILE]]
 *
 * A batch is about 16384 queries: the virtual tokens once, as a sequence of their own, then rows that share their keys.
 * FLOPs are those of visible keys: 4 a query, key and dimension forward, 10 backward. Prints a line a shape. */
#include "base/clock.h"
#include "engine/backend.h"
#include "engine/cpu/coretype.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUERIES 16384
#define MAX_SEQS 512
#define TURNS 10 /* timed calls */
#define DRAWN (1 << 20)

static const struct model {
    const char *name;
    int heads, kv_heads, dim;
} models[] = {{"gpt-125m", 12, 12, 64},   {"gpt-1.3b", 16, 16, 128}, {"gpt-5b", 32, 32, 128},
              {"smollm2-135m", 9, 3, 64}, {"dim-80", 32, 32, 80},    {"dim-96", 32, 32, 96}};

static const struct profile {
    const char *name;
    int virtual_tokens, least, most; /* text tokens of a row */
} profiles[] = {{"short", 100, 64, 256}, {"squad", 15, 80, 270}, {"long", 20, 1536, 1536}};

static struct sl_err err;

static void must(int rc)
{
    if (rc) {
        fprintf(stderr, "bench_attention: %s\n", err.msg);
        exit(1);
    }
}

static uint64_t state = 1;
static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static struct sl_seq seqs[MAX_SEQS];
static int32_t visible[QUERIES];

/* Sets what is the batch's of *a; returns how many keys all queries see together. */
static double make_batch(const struct profile *p, struct sl_attention *a)
{
    double seen = 0;
    a->n_seqs = a->n_queries = 0;
    for (int len = p->virtual_tokens; a->n_seqs < MAX_SEQS && a->n_queries + len <= QUERIES;) {
        int prefix = a->n_seqs ? p->virtual_tokens : 0;
        seqs[a->n_seqs++] = (struct sl_seq){a->n_queries, len, a->n_queries, len, 0, prefix};
        for (int i = 0; i < len; i++, seen += prefix + i)
            visible[a->n_queries++] = i + 1;
        a->max_q_len = len > a->max_q_len ? len : a->max_q_len;
        a->max_kv_len = prefix + len > a->max_kv_len ? prefix + len : a->max_kv_len;
        len = p->least + (int)(draw() % (uint32_t)(p->most - p->least + 1));
    }
    a->n_keys = a->n_queries;
    a->host_seqs = seqs;
    return seen;
}

/* n activations in (-1, 1): DRAWN of them over and over. */
static sl_act *numbers(const struct sl_ops *ops, struct sl_backend *be, int64_t n)
{
    static float host[DRAWN];
    void *f32, *act;
    for (int i = 0; i < DRAWN; i++)
        host[i] = (float)draw() / 0x1p30f - 1;
    must(ops->alloc(be, sizeof host, &f32, &err));
    must(ops->alloc(be, (size_t)n * ops->act_bytes, &act, &err));
    must(ops->upload(be, f32, host, sizeof host, &err));
    for (int64_t i = 0; i < n; i += DRAWN)
        ops->from_f32(be, f32, n - i < DRAWN ? n - i : DRAWN, (char *)act + (size_t)i * ops->act_bytes);
    ops->free(be, f32);
    return act;
}

static void measure(const struct sl_ops *ops, struct sl_backend *be, const struct model *m, const struct profile *p)
{
    struct sl_attention a = {.heads = m->heads, .kv_heads = m->kv_heads, .head_dim = m->dim, .scale = 1 / sqrtf((float)m->dim), .set_keys = true};
    double seen = make_batch(p, &a), flops = 4 * seen * m->heads * m->dim, seconds[2];
    int64_t q_cols = m->heads * m->dim, kv_cols = m->kv_heads * m->dim, ld = q_cols + 2 * kv_cols;
    void *dev_seqs, *dev_visible, *lse;
    char *qkv = numbers(ops, be, QUERIES * ld), *o = numbers(ops, be, QUERIES * q_cols);
    char *d_o = numbers(ops, be, QUERIES * q_cols), *d_qkv = numbers(ops, be, QUERIES * ld);
    size_t q_bytes = (size_t)q_cols * ops->act_bytes, kv_bytes = (size_t)kv_cols * ops->act_bytes;
    float word;
    must(ops->alloc(be, sizeof seqs, &dev_seqs, &err));
    must(ops->alloc(be, sizeof visible, &dev_visible, &err));
    must(ops->alloc(be, (size_t)m->heads * QUERIES * sizeof(float), &lse, &err));
    must(ops->upload(be, dev_seqs, seqs, sizeof seqs, &err));
    must(ops->upload(be, dev_visible, visible, sizeof visible, &err));
    a.seqs = dev_seqs;
    a.visible = dev_visible;
    for (int back = 0; back < 2; back++)
        for (int turn = -1; turn < 1; turn++) { /* once untimed */
            int64_t begun = sl_boot_us();
            for (int i = 0; i < (turn < 0 ? 1 : TURNS); i++)
                if (back)
                    ops->attention_back(be, &a, qkv, ld, qkv + q_bytes, ld, qkv + q_bytes + kv_bytes, ld, o, q_cols, lse,
                                        d_o, q_cols, d_qkv, ld, d_qkv + q_bytes, ld, d_qkv + q_bytes + kv_bytes, ld);
                else
                    ops->attention(be, &a, qkv, ld, qkv + q_bytes, ld, qkv + q_bytes + kv_bytes, ld, o, q_cols, lse);
            must(ops->download(be, &word, lse, sizeof word, &err));
            seconds[back] = (double)(sl_boot_us() - begun) / 1e6 / TURNS;
        }
    printf("%-13s %-6s %3d heads of %3d  forward %7.3f ms %6.1f TFLOP/s  backward %7.3f ms %6.1f TFLOP/s\n", m->name, p->name,
           m->heads, m->dim, seconds[0] * 1e3, flops / seconds[0] / 1e12, seconds[1] * 1e3, 2.5 * flops / seconds[1] / 1e12);
    fflush(stdout);
    void *all[] = {qkv, o, d_o, d_qkv, dev_seqs, dev_visible, lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ops->free(be, all[i]);
}

int main(int argc, char **argv)
{
    const struct sl_ops *ops;
    struct sl_backend *be;
    if (sl_cpu_reexec(argv) || argc < 2 || argc > 4) {
        fprintf(stderr, "usage: bench_attention DEVICE [MODEL [PROFILE]]\n");
        return 2;
    }
    must(sl_backend_open(argv[1], SL_PRECISION_BF16, 0, &ops, &be, &err));
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t p = 0; p < sizeof profiles / sizeof *profiles; p++)
            if ((argc < 3 || !strcmp(argv[2], models[m].name)) && (argc < 4 || !strcmp(argv[3], profiles[p].name)))
                measure(ops, be, &models[m], &profiles[p]);
    ops->close(be);
    return 0;
}

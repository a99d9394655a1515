/* Bidirectional LSTM layer, torch's equations and layout: gates i, f, g, o; c = f c + i g; h = o
 * tanh(c).
 *
 * saved: for each direction the gates [seqs*steps, 4E] after their functions, then the cells
 * [seqs*steps, E]. The input's part of all gates is one product; a step adds the recurrent part for
 * all sequences at once. */
#include "engine/cpu/cpu.h"
#include "engine/cpu/simd.h"

#define COLUMN_BLOCK 256 /* columns one thread sums at a time */

struct dir {
    int64_t rows; /* seqs*steps */
    int hidden, steps, seqs;
    bool reverse;
    const float *w_ih, *w_hh, *b_ih, *b_hh;
    float *gates, *cells;
};

static struct dir direction(const struct sl_lstm *l, int which)
{
    int64_t rows = (int64_t)l->seqs * l->steps, e = l->hidden, n4 = 4 * e;
    return (struct dir){.rows = rows,
                        .hidden = l->hidden,
                        .steps = l->steps,
                        .seqs = l->seqs,
                        .reverse = which == 1,
                        .w_ih = l->w_ih + which * n4 * l->in,
                        .w_hh = l->w_hh + which * n4 * e,
                        .b_ih = l->b_ih + which * n4,
                        .b_hh = l->b_hh + which * n4,
                        .gates = l->saved + which * rows * 5 * e,
                        .cells = l->saved + which * rows * 5 * e + rows * n4};
}

/* Step i of a direction, in its own order, as an index in time. */
static int time_of(const struct dir *d, int i)
{
    return d->reverse ? d->steps - 1 - i : i;
}

size_t sl_cpu_lstm_saved(const struct sl_lstm *l)
{
    return (size_t)2 * (size_t)l->seqs * (size_t)l->steps * 5 * (size_t)l->hidden;
}

SL_CLONES static void cell_forward(int e, float *gates, const float *c_before, float *c, float *h)
{
    float *gi = gates, *gf = gates + e, *gg = gates + 2 * (int64_t)e, *go = gates + 3 * (int64_t)e;
#pragma omp simd
    for (int j = 0; j < e; j++) {
        float vi = sl_sigmoidf(gi[j]), vf = sl_sigmoidf(gf[j]), vg = sl_tanhf(gg[j]),
              vo = sl_sigmoidf(go[j]);
        float vc = vi * vg + (c_before ? vf * c_before[j] : 0.0f);
        gi[j] = vi;
        gf[j] = vf;
        gg[j] = vg;
        go[j] = vo;
        c[j] = vc;
        h[j] = vo * sl_tanhf(vc);
    }
}

/* dh and *dc (of the step after, updated to the step before) give the gradients of the gates'
 * arguments. */
SL_CLONES static void cell_backward(int e, const float *gates, const float *c_before,
                                    const float *c, const float *dh, float *dc, float *dgates)
{
    const float *gi = gates, *gf = gates + e, *gg = gates + 2 * (int64_t)e,
                *go = gates + 3 * (int64_t)e;
    float *di = dgates, *df = dgates + e, *dg = dgates + 2 * (int64_t)e,
          *d_o = dgates + 3 * (int64_t)e;
#pragma omp simd
    for (int j = 0; j < e; j++) {
        float t = sl_tanhf(c[j]);
        float vc = dc[j] + dh[j] * go[j] * (1.0f - t * t);
        d_o[j] = dh[j] * t * go[j] * (1.0f - go[j]);
        di[j] = vc * gg[j] * gi[j] * (1.0f - gi[j]);
        dg[j] = vc * gi[j] * (1.0f - gg[j] * gg[j]);
        df[j] = c_before ? vc * c_before[j] * gf[j] * (1.0f - gf[j]) : 0.0f;
        dc[j] = vc * gf[j];
    }
}

static void forward_direction(struct sl_backend *be, const struct sl_lstm *l, const struct dir *d,
                              const float *x, float *y)
{
    int e = d->hidden, n4 = 4 * e, half = d->reverse ? e : 0;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (d->rows * n4 > SL_CPU_SMALL)
    for (int64_t r = 0; r < d->rows; r++)
        for (int j = 0; j < n4; j++)
            d->gates[r * n4 + j] = d->b_ih[j] + d->b_hh[j];
    sl_cpu_gemm_f32(be, false, true, (int)d->rows, n4, l->in, 1.0f, x, l->in, d->w_ih, l->in, 1.0f,
                    d->gates, n4);
    for (int i = 0; i < d->steps; i++) {
        int t = time_of(d, i), before = i ? time_of(d, i - 1) : -1;
        if (i)
            sl_cpu_gemm_f32(be, false, true, d->seqs, n4, e, 1.0f,
                            y + (int64_t)before * 2 * e + half, d->steps * 2 * e, d->w_hh, e, 1.0f,
                            d->gates + (int64_t)t * n4, d->steps * n4);
#pragma omp parallel for num_threads(be->threads)                                                  \
    schedule(static) if ((int64_t)d->seqs * n4 > SL_CPU_SMALL)
        for (int s = 0; s < d->seqs; s++) {
            int64_t row = (int64_t)s * d->steps + t, row_before = (int64_t)s * d->steps + before;
            cell_forward(e, d->gates + row * n4, i ? d->cells + row_before * e : NULL,
                         d->cells + row * e, y + row * 2 * e + half);
        }
    }
}

void sl_cpu_lstm(struct sl_backend *be, const struct sl_lstm *l, const float *x, float *y)
{
    for (int which = 0; which < 2; which++) {
        struct dir d = direction(l, which);
        forward_direction(be, l, &d, x, y);
    }
}

/* dgates of all steps, backwards in the direction's time. dh is [seqs, E] scratch, dc [seqs, E]. */
static void backward_gates(struct sl_backend *be, const struct dir *d, const float *dy,
                           float *dgates, float *dh, float *dc)
{
    int e = d->hidden, n4 = 4 * e, half = d->reverse ? e : 0;
    memset(dc, 0, (size_t)d->seqs * (size_t)e * sizeof *dc);
    for (int i = d->steps - 1; i >= 0; i--) {
        int t = time_of(d, i), before = i ? time_of(d, i - 1) : -1;
        for (int s = 0; s < d->seqs; s++)
            memcpy(dh + (int64_t)s * e, dy + ((int64_t)s * d->steps + t) * 2 * e + half,
                   (size_t)e * sizeof *dh);
        if (i + 1 < d->steps)
            sl_cpu_gemm_f32(be, false, false, d->seqs, e, n4, 1.0f,
                            dgates + (int64_t)time_of(d, i + 1) * n4, d->steps * n4, d->w_hh, e,
                            1.0f, dh, e);
#pragma omp parallel for num_threads(be->threads)                                                  \
    schedule(static) if ((int64_t)d->seqs * n4 > SL_CPU_SMALL)
        for (int s = 0; s < d->seqs; s++) {
            int64_t row = (int64_t)s * d->steps + t, row_before = (int64_t)s * d->steps + before;
            cell_backward(e, d->gates + row * n4, i ? d->cells + row_before * e : NULL,
                          d->cells + row * e, dh + (int64_t)s * e, dc + (int64_t)s * e,
                          dgates + row * n4);
        }
    }
}

/* Adds the sums of n columns to both biases' gradients. */
SL_CLONES static void bias_gradient(const float *x, int rows, int ld, int n, float *g1, float *g2)
{
    float sum[COLUMN_BLOCK] = {0};
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j++)
            sum[j] += x[(int64_t)r * ld + j];
    for (int j = 0; j < n; j++) {
        g1[j] += sum[j];
        g2[j] += sum[j];
    }
}

void sl_cpu_lstm_back(struct sl_backend *be, const struct sl_lstm *l, const float *x,
                      const float *y, const float *dy, float *dx, const struct sl_lstm_grad *grad)
{
    int e = l->hidden, n4 = 4 * e, rows = l->seqs * l->steps;
    size_t states = (size_t)l->seqs * (size_t)e;
    float *dgates = sl_cpu_shared(be, (size_t)rows * (size_t)n4 + 2 * states);
    if (!dgates)
        return;
    float *dh = dgates + (size_t)rows * (size_t)n4, *dc = dh + states;
    for (int which = 0; which < 2; which++) {
        struct dir d = direction(l, which);
        float *gw_ih = grad->w_ih + (int64_t)which * n4 * l->in,
              *gw_hh = grad->w_hh + (int64_t)which * n4 * e;
        float *gb_ih = grad->b_ih + which * n4, *gb_hh = grad->b_hh + which * n4;
        int half = which ? e : 0;
        backward_gates(be, &d, dy, dgates, dh, dc);
        sl_cpu_gemm_f32(be, true, false, n4, l->in, rows, 1.0f, dgates, n4, x, l->in, 1.0f, gw_ih,
                        l->in);
        /* The state before a step is y of the step before it in the direction's order; before the
         * first it is 0. */
        for (int s = 0; s < l->seqs && l->steps > 1; s++) {
            int64_t row = (int64_t)s * l->steps;
            sl_cpu_gemm_f32(be, true, false, n4, e, l->steps - 1, 1.0f,
                            dgates + (row + (which ? 0 : 1)) * n4, n4,
                            y + (row + (which ? 1 : 0)) * 2 * e + half, 2 * e, 1.0f, gw_hh, e);
        }
#pragma omp parallel for num_threads(be->threads)                                                  \
    schedule(static) if ((int64_t)rows * n4 > SL_CPU_SMALL)
        for (int j = 0; j < n4; j += COLUMN_BLOCK)
            bias_gradient(dgates + j, rows, n4, n4 - j < COLUMN_BLOCK ? n4 - j : COLUMN_BLOCK,
                          gb_ih + j, gb_hh + j);
        if (dx)
            sl_cpu_gemm_f32(be, false, false, rows, l->in, n4, 1.0f, dgates, n4, d.w_ih, l->in,
                            which ? 1.0f : 0.0f, dx, l->in);
    }
}

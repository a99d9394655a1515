/* Inside of engine/encoder.h: shared by encoder.c (making one) and encoder_pass.c (forward and
 * backward). */
#ifndef SL_ENGINE_ENCODER_IMPL_H
#define SL_ENGINE_ENCODER_IMPL_H
#include "engine/encoder.h"

#define SL_ENC_MAX_BLOCKS (8 + 4 * SL_ENC_MAX_LAYERS)

struct sl_encoder_init {
    enum { INIT_ZERO, INIT_NORMAL, INIT_UNIFORM } kind;
    double scale; /* standard deviation, or the bound */
};

struct sl_encoder_linear {
    int in, out, weight, bias; /* weight, bias: indices of parameters */
    enum sl_act_kind kind;
    const float *x; /* input, set by forward */
    float *pre, *y; /* the last layer writes its pre-activation to the caller's tables: both NULL */
};

struct sl_encoder_lstm {
    struct sl_lstm l;
    int first;          /* index of weight_ih_l<k>; seven more follow */
    float *y, *dropped; /* output; the next layer's input (y itself without dropout) */
    const float *x;
};

struct sl_encoder_fixed {
    float *rows; /* device [n, hidden] */
    int n;
};

struct sl_encoder {
    struct sl_encoder_config config;
    const struct sl_ops *ops;
    struct sl_backend *be;

    int n_params;
    struct sl_param *param;
    struct sl_encoder_init *init;
    size_t *offset, n_floats; /* of each parameter in each of the four blocks value, grad, m, v */
    float *state[4];

    int n_linear, n_lstm;
    struct sl_encoder_linear linear[SL_ENC_MAX_LAYERS];
    struct sl_encoder_lstm lstm[SL_ENC_MAX_LAYERS];
    struct sl_encoder_fixed *fixed; /* [n_tasks] */

    int rows;                        /* n_tasks * virtual_tokens */
    float *input;                    /* [rows, hidden] */
    float *scratch[2];               /* [rows, widest] */
    float *block[SL_ENC_MAX_BLOCKS]; /* what alloc_floats gave */
    int n_blocks;

    bool dropped; /* by the last forward */
    int64_t step;
};

#endif

/* What is trained: prompt tables and the prompt encoders of p-tuning, as named fp32 parameters on
 * the device.
 *
 * One sl_encoder serves n_tasks tasks of V virtual tokens each and produces their tables
 * [n_tasks*V, hidden]. Types and initialisation follow semantics of NeMo 1.16/1.20 and PEFT 0.19:
 *   SL_ENC_TABLE      prompt tuning: one parameter [V, hidden] a task, no network
 *   SL_ENC_TPMLP      embedding [V,H]; Linear H->E, GELU (tanh), Linear E->H; weights N(0,
 * init_std), bias 0 SL_ENC_MLP        embedding; Linear H->E, ReLU, (E->E, ReLU) x (layers-2),
 * E->H; torch's default init. PEFT's has always three linear layers (layers = 3) SL_ENC_LSTM
 * embedding; bidirectional LSTM H->E with layers; Linear 2E->2E, ReLU, Linear 2E->H
 *   SL_ENC_EMBEDDING  the embedding itself, xavier normal
 * The input embedding is N(0,1) except for SL_ENC_EMBEDDING. With several tasks the encoder and its
 * embedding are shared, and the first rows of each task's input may be replaced by frozen rows (the
 * task name's embeddings). Initial values are a function of (seed, parameter), made on the host,
 * the same for every backend. */
#ifndef SL_ENGINE_ENCODER_H
#define SL_ENGINE_ENCODER_H
#include "engine/ops.h"

#define SL_ENC_MAX_TASKS 1024
#define SL_ENC_MAX_PARAMS 2048
#define SL_ENC_MAX_VIRTUAL 8192 /* virtual tokens of a task */
#define SL_ENC_MAX_WIDTH 65536  /* hidden and encoder_hidden */
#define SL_ENC_MAX_LAYERS 32
#define SL_PARAM_NAME_MAX 96

enum sl_encoder_type { SL_ENC_TABLE, SL_ENC_TPMLP, SL_ENC_MLP, SL_ENC_LSTM, SL_ENC_EMBEDDING };

struct sl_encoder_config {
    enum sl_encoder_type type;
    int n_tasks, virtual_tokens, hidden; /* hidden: the model's H */
    int encoder_hidden, layers;          /* E; mlp: linear layers, lstm: LSTM layers */
    float dropout;                       /* between LSTM layers, training only */
    float init_std;                      /* tpmlp */
    uint64_t seed;
};

struct sl_param {
    char name[SL_PARAM_NAME_MAX]; /* "embedding.weight", "mlp_head.0.weight",
                                     "lstm_head.weight_ih_l0_reverse", "table.0" */
    int rows, cols;               /* a vector has rows = 1 */
    float *value, *grad, *m, *v;  /* device; m, v: AdamW's moments */
    float lr_ratio;               /* of the step's learning rate; 1 as made */
};

struct sl_encoder;

/* SL_SPEC for a size out of range, naming it; SL_NOMEM with the bytes wanted. */
int sl_encoder_new(const struct sl_encoder_config *config, const struct sl_ops *ops,
                   struct sl_backend *be, struct sl_encoder **ret_encoder, struct sl_err *err);
void sl_encoder_free(struct sl_encoder *e);
const struct sl_encoder_config *sl_encoder_config(const struct sl_encoder *e);
/* Parameters in PyTorch's order; valid for the encoder's life. Gradients and moments start at zero.
 */
struct sl_param *sl_encoder_params(struct sl_encoder *e, int *ret_n);
/* All of them as one, with zeros in the gaps between: for what treats every number alike. */
struct sl_param sl_encoder_whole(const struct sl_encoder *e);
/* Bytes of parameters, gradients and moments: what a plan prints. 0 for sizes out of range. */
int64_t sl_encoder_state_bytes(const struct sl_encoder_config *config);

/* Sets the first n rows of task's input (encoders) to host_rows [n, hidden], frozen. Not for
 * SL_ENC_TABLE. */
int sl_encoder_fix_rows(struct sl_encoder *e, int task, const float *host_rows, int n,
                        struct sl_err *err);
/* Sets a task's table (SL_ENC_TABLE): text initialisation, or an earlier table. host_rows [V,
 * hidden]. */
int sl_encoder_set_table(struct sl_encoder *e, int task, const float *host_rows,
                         struct sl_err *err);

/* tables (device, [n_tasks*V, hidden]) = encoder(...). training: with dropout; the masks follow
 * (seed, step). */
void sl_encoder_forward(struct sl_encoder *e, bool training, int64_t step, float *tables);
/* Adds to every parameter's grad, after the forward call of the same step. Fixed rows have none. */
void sl_encoder_backward(struct sl_encoder *e, const float *dtables);
void sl_encoder_zero_grad(struct sl_encoder *e);

#endif

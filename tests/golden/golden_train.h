/* Training against a recorded run of PEFT or plain torch (make_llama_peft.py, make_families.py):
 * gradients of the first step, 20 losses, the final table. The same comparison must fail for each
 * planted fault. For cmocka programs: what fails here fails the test. */
#ifndef SL_TESTS_GOLDEN_TRAIN_H
#define SL_TESTS_GOLDEN_TRAIN_H
#include "engine/model.h"
#include "tests/golden/golden.h"
#include <stdbool.h>

#define GOLDEN_GRAD_TOLERANCE 1e-4  /* relative L2 */
#define GOLDEN_LOSS_TOLERANCE 1e-4  /* nats */
#define GOLDEN_TABLE_TOLERANCE 1e-3 /* relative L2 */

enum golden_fault {
    GOLDEN_NO_FAULT,
    GOLDEN_GRADIENT_TENTH_MORE,
    GOLDEN_LABEL_SHIFTED,
    /* in operations: */
    GOLDEN_PREFIX_DK_LEFT_OUT,      /* a shared prefix's keys get no gradient from other rows */
    GOLDEN_HEAD_NORM_BACK_LEFT_OUT, /* the gradient passes norms of heads unchanged */
    GOLDEN_BIAS_LEFT_OUT            /* of every linear layer */
};

/* A model on the CPU backend, in which the faults can be planted. */
struct golden_model {
    struct sl_backend *be;
    struct sl_model *model;
};
void golden_model_open(struct golden_model *gm, const char *path);
/* In another precision than fp32: golden_train then compares to the recorded fp32 run still. */
void golden_model_open_in(struct golden_model *gm, const char *path, enum sl_precision precision);
void golden_model_close(struct golden_model *gm);
/* Plants a fault in the operations of all models, until the next call. */
void golden_plant(enum golden_fault fault);

/* How far a run is from the recorded one. */
struct golden_verdict {
    double grad, prompt_grad, loss, norm, lr, table;
    double last_loss; /* relative, of the last step's */
};
bool golden_passes(const struct golden_verdict *v);

/* Trains as the recorded run of tests/golden/`file` did and compares. share: prefixes once for all
 * rows. */
struct golden_verdict golden_train(const struct golden_model *gm, const char *file, bool share,
                                   enum golden_fault fault);

#endif

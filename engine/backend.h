/* Which backend computes: the CPU, or the CUDA library that lies beside the worker.
 *
 * libsoftlaunch-cuda.so is loaded only here, so that one worker serves machines with and without a GPU. */
#ifndef SL_ENGINE_BACKEND_H
#define SL_ENGINE_BACKEND_H
#include "engine/ops.h"

#define SL_CUDA_LIBRARY "libsoftlaunch-cuda.so"
#define SL_CUDA_ENTRY "sl_cuda_ops"
#define SL_CUDA_ABI 5u /* raised with every change of ops.h that leaves its size as it was */

/* The library's one export: the table with fp32 or with bf16 activations, or NULL when worker and library do
 * not belong together. */
typedef const struct sl_ops *sl_cuda_ops_fn(unsigned abi, size_t ops_bytes, int fp32);

/* device: "auto", "cpu", "cuda" or "cuda:N" (the N-th GPU that this process may use); NULL is what
 * SOFTLAUNCH_DEVICE in the environment says, or else auto. auto is the first GPU, or the CPU when the
 * library is not installed or the machine has no GPU with a driver; a GPU that is there but cannot be used is
 * an error. Opens the backend; the table stays valid for ever. Blocks (a second or less: CUDA's start).
 * SL_SPEC for a device that nobody knows or one that has not this precision, SL_NOTFOUND for one that is not there, SL_DEVICE, SL_NOMEM. */
int sl_backend_open(const char *device, enum sl_precision precision, int threads, const struct sl_ops **ret_ops,
                    struct sl_backend **ret_be, struct sl_err *err);
/* The CUDA table alone, of the library in folder dir (NULL: beside this program, or in ../lib/softlaunch);
 * SL_NOTFOUND with the reason when it cannot be loaded. */
int sl_backend_cuda(const char *dir, bool fp32, const struct sl_ops **ret_ops, struct sl_err *err);

#endif

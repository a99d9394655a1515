/* Which OpenBLAS kernels fit this processor, and starting over with them.
 *
 * OpenBLAS 0.3.21 falls back to its Prescott kernels on processors newer than itself: a fifth of
 * the speed. It reads its environment once, when it is loaded, so a program that wants the right
 * kernels must be exec'd with them. What the environment already says wins. */
#ifndef SL_ENGINE_CPU_CORETYPE_H
#define SL_ENGINE_CPU_CORETYPE_H

/* "SkylakeX" (AVX-512 F, BW, DQ, VL, CD, saved by the operating system), "Haswell" (AVX2 and FMA),
 * or NULL: let OpenBLAS choose. */
const char *sl_cpu_coretype(void);
/* Cores this process may use: its affinity, no more than its cgroup's CPU quota rounded up; at
 * least 1. */
int sl_cpu_usable_cores(void);
/* Call first in main. Returns 0 when nothing is to be done; otherwise sets OPENBLAS_CORETYPE,
 * OMP_NUM_THREADS and OMP_WAIT_POLICY where they are unset and executes this program again with
 * argv, which returns only on failure: -1 with errno. Threads wait passively: that costs about 10
 * us a parallel region (1 % of a training step), while spinning ones slow a step several times when
 * another process wants the same core. */
int sl_cpu_reexec(char **argv);

#endif

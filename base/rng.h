/* Random numbers: SplitMix64 (Steele, Lea, Flood 2014), counter-based.
 *
 * Draw i of a stream is mix(key + (i + 1) * gamma), so a generator is two words, can be saved and
 * continued to the same bits, and gives the same integers on every machine. Streams of different
 * (seed, stream) pairs are independent for our purposes. Not for secrets: those come from
 * sl_random_id. */
#ifndef SL_BASE_RNG_H
#define SL_BASE_RNG_H
#include <math.h>
#include <stdint.h>

/* Purposes that must not share a stream under one seed. */
enum sl_rng_stream {
    SL_RNG_ORDER = 1 << 20, /* + epoch: row order */
    SL_RNG_INIT = 1,        /* + slot: prompt rows and encoder inputs */
    SL_RNG_ENCODER = 2 << 20,
    SL_RNG_DROPOUT = 3 << 20,
    SL_RNG_SAMPLING = 4 << 20,
    SL_RNG_DATA = 5 << 20
};

struct sl_rng {
    uint64_t key;   /* from seed and stream; constant */
    uint64_t count; /* draws so far */
};

static inline uint64_t sl_rng_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline struct sl_rng sl_rng_new(uint64_t seed, uint64_t stream)
{
    struct sl_rng r = {sl_rng_mix(sl_rng_mix(seed + 0x9e3779b97f4a7c15u) ^ stream), 0};
    return r;
}

static inline uint64_t sl_rng_next(struct sl_rng *r)
{
    return sl_rng_mix(r->key + ++r->count * 0x9e3779b97f4a7c15u);
}

/* Uniform in [0, n), without bias (draws again in a rare case); n > 0. */
static inline uint64_t sl_rng_below(struct sl_rng *r, uint64_t n)
{
    uint64_t least = (0 - n) % n, x;
    do
        x = sl_rng_next(r);
    while (x < least);
    return x % n;
}

/* Uniform in [0, 1), 53 bits. */
static inline double sl_rng_uniform(struct sl_rng *r)
{
    return (double)(sl_rng_next(r) >> 11) * 0x1p-53;
}

/* Standard normal by Box-Muller; always two draws, nothing kept between calls. */
static inline double sl_rng_normal(struct sl_rng *r)
{
    double u = 1.0 - sl_rng_uniform(r), v = sl_rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

#endif

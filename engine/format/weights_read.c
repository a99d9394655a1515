/* The rows of a model's tensors, however they lie in its files: as fp32, and for the digest. */
#include "engine/format/weights_format.h"
#include "engine/ops.h"
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#define PARALLEL_MIN (1 << 15)  /* elements; below, one thread reads */
#define FORGET_BYTES (1u << 20) /* a larger tensor's pages are given back once it is hashed */
#define HASHING_THREADS_MIN 2
#define HASHING_THREADS_MAX 8   /* more would only wait for the file */
#define COLUMN_ROWS 32          /* rows that are read together of a tensor stored by columns */
#define COLUMN_TILE 32          /* and columns, where they are copied */

/* Where Hugging Face's row i of Q or K is stored. Of a head's d rows ggml keeps i and i + d/2 side
 * by side, since its rotary embedding turns adjacent pairs. */
static int64_t stored_row(const struct sl_tensor *t, int64_t n, int64_t i)
{
    if (t->rotary_heads == 0)
        return i;
    int64_t d = n / t->rotary_heads, half = d / 2, in_head = i % d;
    return i - in_head + 2 * (in_head % half) + in_head / half;
}

static const unsigned char *row_data(const struct sl_tensor *t, int64_t row)
{
    return t->data + (size_t)stored_row(t, t->rows, row) * sl_tensor_row_bytes(t);
}

/* Rows row0 to row0 + n, at most COLUMN_ROWS, of a tensor stored by columns. */
static void read_columns(const struct sl_tensor *t, int64_t row0, int64_t n, float *out)
{
    const unsigned char *from =
        t->data + (size_t)row0 * (size_t)sl_dtype_info(t->dtype)->block_bytes;
    float part[COLUMN_ROWS];
    for (int64_t c = 0; c < t->cols; c++, from += t->column_bytes) {
        sl_dequant_row(t->dtype, from, n, part);
        for (int64_t i = 0; i < n; i++)
            out[i * t->cols + c] = part[i];
    }
}

/* The same as they are stored, a tile of columns at a time: what is read stays in the first cache, what is written lies in a
 * line. For elements of a size known here, since a call for each would take longer than hashing them. */
#define COPY_TILED(from, bytes)                                                                    \
    for (int64_t c0 = 0; c0 < t->cols; c0 += COLUMN_TILE)                                          \
        for (int64_t i = 0; i < n; i++)                                                            \
            for (int64_t c = c0; c < t->cols && c < c0 + COLUMN_TILE; c++)                         \
                memcpy(out + (i * t->cols + c) * (bytes),                                          \
                       (from) + c * (int64_t)t->column_bytes + i * (bytes), bytes)
static void copy_columns(const struct sl_tensor *t, int64_t row0, int64_t n, unsigned char *out)
{
    int64_t bytes = (int64_t)sl_dtype_info(t->dtype)->block_bytes;
    const unsigned char *from = t->data + row0 * bytes;
    if (bytes == 2)
        COPY_TILED(from, 2);
    else if (bytes == 4)
        COPY_TILED(from, 4);
    else
        COPY_TILED(from, bytes);
}

/* Row i of part p of a layout, or element i. */
static const unsigned char *part_row(const struct sl_layout *l, int part, int64_t i, size_t bytes)
{
    int64_t at = i / l->block_rows * l->block_step + i % l->block_rows;
    return l->part[part] + (size_t)at * bytes;
}

/* Copies row i of a tensor with a layout, as it is stored, to out. */
static void gather_row(const struct sl_tensor *t, int64_t i, unsigned char *out)
{
    const struct sl_layout *l = t->layout;
    size_t element = (size_t)sl_dtype_info(t->dtype)->block_bytes, row = sl_tensor_row_bytes(t);
    size_t piece = row / (size_t)l->n_parts;
    if (l->split == SL_SPLIT_ROWS)
        memcpy(out, part_row(l, (int)(i / l->part_rows), i % l->part_rows, row), row);
    for (int p = 0; l->split == SL_SPLIT_COLS && p < l->n_parts; p++)
        memcpy(out + (size_t)p * piece, l->part[p] + (size_t)i * piece, piece);
    for (int64_t e = 0; l->split == SL_SPLIT_ELEMENTS && e < t->cols; e++)
        memcpy(out + (size_t)e * element,
               part_row(l, (int)(e / l->part_rows), e % l->part_rows, element), element);
}

/* The same as fp32; stored is room for a row. */
static void read_row(const struct sl_tensor *t, int64_t i, unsigned char *stored, float *out)
{
    gather_row(t, i, stored);
    sl_dequant_row(t->dtype, stored, t->cols, out);
    for (int64_t c = 0; t->layout->plus != 0 && c < t->cols; c++)
        out[c] += t->layout->plus;
}

static int read_laid_out(const struct sl_tensor *t, int64_t row0, int64_t n_rows, float *out,
                         struct sl_err *err)
{
    bool failed = false;
#pragma omp parallel if (n_rows * t->cols >= PARALLEL_MIN)
    {
        unsigned char *stored = malloc(sl_tensor_row_bytes(t));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n_rows; i++) {
            if (stored)
                read_row(t, row0 + i, stored, out + i * t->cols);
        }
        if (!stored)
#pragma omp atomic write
            failed = true;
        free(stored);
    }
    return failed ? sl_err_set(err, SL_NOMEM, "out of memory for weight '%s'", t->name) : 0;
}

/* The bias of Q or K: its elements are what is permuted. */
static int read_permuted_vector(const struct sl_tensor *t, float *out, struct sl_err *err)
{
    float *stored = malloc((size_t)t->cols * sizeof *stored);
    if (!stored)
        return sl_err_set(err, SL_NOMEM, "out of memory for weight '%s'", t->name);
    sl_dequant_row(t->dtype, t->data, t->cols, stored);
    for (int64_t i = 0; i < t->cols; i++)
        out[i] = stored[stored_row(t, t->cols, i)];
    free(stored);
    return 0;
}

static int find_named(const struct sl_weights *w, const char *name,
                      const struct sl_tensor **ret_tensor, struct sl_err *err)
{
    const struct sl_tensor *t = sl_weights_find(w, name);
    if (!t)
        return sl_err_set(err, SL_NOTFOUND, "model %s has no weight '%s'", w->path, name);
    *ret_tensor = t;
    return 0;
}

int sl_weights_shape(const struct sl_weights *w, const char *name, int64_t *ret_rows,
                     int64_t *ret_cols, struct sl_err *err)
{
    const struct sl_tensor *t = NULL;
    int rc = find_named(w, name, &t, err);
    if (rc < 0)
        return rc;
    *ret_rows = t->rows;
    *ret_cols = t->cols;
    return 0;
}

int sl_weights_read_f32(const struct sl_weights *w, const char *name, int64_t row0, int64_t n_rows,
                        float *out, struct sl_err *err)
{
    const struct sl_tensor *t = NULL;
    int rc = find_named(w, name, &t, err);
    if (rc < 0)
        return rc;
    if (row0 < 0 || n_rows < 0 || row0 > t->rows || n_rows > t->rows - row0)
        return sl_err_set(err, SL_SPEC, "%lld rows from %lld of weight '%s', which has %lld",
                          (long long)n_rows, (long long)row0, name, (long long)t->rows);
    if (t->layout)
        return read_laid_out(t, row0, n_rows, out, err);
    if (t->rows == 1 && t->rotary_heads > 0)
        return n_rows == 0 ? 0 : read_permuted_vector(t, out, err);
    if (t->column_bytes > 0) {
#pragma omp parallel for schedule(static) if (n_rows * t->cols >= PARALLEL_MIN)
        for (int64_t i = 0; i < n_rows; i += COLUMN_ROWS)
            read_columns(t, row0 + i, n_rows - i < COLUMN_ROWS ? n_rows - i : COLUMN_ROWS,
                         out + i * t->cols);
        return 0;
    }
#pragma omp parallel for schedule(static) if (n_rows * t->cols >= PARALLEL_MIN)
    for (int64_t i = 0; i < n_rows; i++)
        sl_dequant_row(t->dtype, row_data(t, row0 + i), t->cols, out + i * t->cols);
    return 0;
}

bool sl_weights_raw(const struct sl_weights *w, const char *name, struct sl_raw *ret_raw)
{
    const struct sl_tensor *t = sl_weights_find(w, name);
    if (!t || t->layout || t->rotary_heads > 0 ||
        (t->dtype != SL_DT_F32 && t->dtype != SL_DT_F16 && t->dtype != SL_DT_BF16))
        return false;
    int64_t element = (int64_t)sl_dtype_info(t->dtype)->block_bytes;
    *ret_raw = (struct sl_raw){
        .p = t->data,
        .type = t->dtype == SL_DT_F32   ? SL_RAW_F32
                : t->dtype == SL_DT_F16 ? SL_RAW_F16
                                        : SL_RAW_BF16,
        .rows = t->rows,
        .row_bytes = t->column_bytes > 0 ? element : (int64_t)sl_tensor_row_bytes(t),
        .col_bytes = t->column_bytes > 0 ? (int64_t)t->column_bytes : element};
    return true;
}

static int digest_laid_out(struct sl_sha256 *d, const struct sl_tensor *t, struct sl_err *err)
{
    unsigned char *row = malloc(sl_tensor_row_bytes(t));
    if (!row)
        return sl_err_set(err, SL_NOMEM, "out of memory for weight '%s'", t->name);
    if (t->layout->plus != 0)
        sl_sha256_update(d, &t->layout->plus, sizeof t->layout->plus);
    for (int64_t i = 0; i < t->rows; i++) {
        gather_row(t, i, row);
        sl_sha256_update(d, row, sl_tensor_row_bytes(t));
    }
    free(row);
    return 0;
}

static int digest_columns(struct sl_sha256 *d, const struct sl_tensor *t, struct sl_err *err)
{
    size_t row_bytes = sl_tensor_row_bytes(t);
    unsigned char *rows = malloc(COLUMN_ROWS * row_bytes);
    if (!rows)
        return sl_err_set(err, SL_NOMEM, "out of memory for weight '%s'", t->name);
    for (int64_t row = 0; row < t->rows; row += COLUMN_ROWS) {
        int64_t n = t->rows - row < COLUMN_ROWS ? t->rows - row : COLUMN_ROWS;
        copy_columns(t, row, n, rows);
        sl_sha256_update(d, rows, (size_t)n * row_bytes);
    }
    free(rows);
    return 0;
}

/* The elements of a permuted vector in our order; in blocks they stay as they are stored. */
static void digest_permuted_vector(struct sl_sha256 *d, const struct sl_tensor *t)
{
    size_t bytes = (size_t)sl_dtype_info(t->dtype)->block_bytes;
    for (int64_t i = 0; i < t->cols; i++)
        sl_sha256_update(d, t->data + (size_t)stored_row(t, t->cols, i) * bytes, bytes);
}

static int digest_tensor(struct sl_sha256 *d, const struct sl_tensor *t, struct sl_err *err)
{
    const char *type = sl_dtype_info(t->dtype)->name;
    const int64_t shape[2] = {t->rows, t->cols};
    sl_sha256_update(d, t->name, strlen(t->name) + 1);
    sl_sha256_update(d, type, strlen(type) + 1);
    sl_sha256_update(d, shape, sizeof shape);
    if (t->layout)
        return digest_laid_out(d, t, err);
    if (t->column_bytes > 0)
        return digest_columns(d, t, err);
    if (t->rows > 1)
        for (int64_t row = 0; row < t->rows; row++)
            sl_sha256_update(d, row_data(t, row), sl_tensor_row_bytes(t));
    else if (t->rotary_heads > 0 && sl_dtype_info(t->dtype)->block == 1)
        digest_permuted_vector(d, t);
    else
        sl_sha256_update(d, t->data, sl_tensor_row_bytes(t));
    return 0;
}

/* Tensors hashed at a time: half the processors, since a model is hashed beside the work that needs them. */
static int hashing_threads(void)
{
    int half = get_nprocs() / 2;
    return half < HASHING_THREADS_MIN   ? HASHING_THREADS_MIN
           : half > HASHING_THREADS_MAX ? HASHING_THREADS_MAX
                                        : half;
}

static int hash_tensor(const struct sl_tensor *t, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err)
{
    struct sl_sha256 d;
    int rc = sl_sha256_init(&d, err);
    if (rc < 0)
        return rc;
    rc = digest_tensor(&d, t, err);
    if (rc < 0)
        sl_sha256_release(&d);
    else
        sl_sha256_hex(&d, ret_hex);
    return rc;
}

/* One hash per tensor, several tensors at a time, and one over these in the order of the names: a hash over all bytes
 * would take one processor 40 s for 10 GB. */
static int compute_digest(struct sl_weights *w, struct sl_err *err)
{
    char(*each)[SL_SHA256_HEX + 1] = calloc((size_t)w->n_tensors, sizeof *each);
    int rc = 0, threads = hashing_threads();
    (void)threads; /* without OpenMP: one */
    if (!each)
        return sl_err_set(err, SL_NOMEM, "out of memory for the digests of %d weights", w->n_tensors);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int i = 0; i < w->n_tensors; i++) {
        const struct sl_tensor *t = &w->tensors[i];
        struct sl_err mine = SL_ERR_INIT;
        if (atomic_load(&w->give_up))
            continue;
        int failed = hash_tensor(t, each[i], &mine);
        if (failed)
#pragma omp critical
            rc = sl_err_set(err, failed, "%s", mine.msg);
        if ((size_t)t->rows * sl_tensor_row_bytes(t) > FORGET_BYTES)
            sl_weights_forget(w);
    }
    if (!rc && !atomic_load(&w->give_up))
        rc = sl_sha256_data(each, (size_t)w->n_tensors * sizeof *each, w->digest, err);
    free(each);
    return rc;
}

static void *hash(void *weights)
{
    (void)compute_digest(weights, NULL); /* what failed is tried again by who asks, and reported */
    return NULL;
}

void sl_weights_digest_begin(struct sl_weights *w)
{
    w->hashing = w->hashing || (!w->digest[0] && pthread_create(&w->hasher, NULL, hash, w) == 0);
}

int sl_weights_digest(struct sl_weights *w, char ret_hex[SL_SHA256_HEX + 1], struct sl_err *err)
{
    if (w->hashing)
        pthread_join(w->hasher, NULL);
    w->hashing = false;
    int rc = w->digest[0] ? 0 : compute_digest(w, err);
    if (rc == 0)
        memcpy(ret_hex, w->digest, sizeof w->digest);
    return rc;
}

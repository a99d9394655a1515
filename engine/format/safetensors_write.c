/* The writer of safetensors.h. */
#include "base/digest.h"
#include "base/file.h"
#include "engine/format/safetensors_seal.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_ALIGN 8

static void put_length(unsigned char *p, uint64_t n)
{
    for (int i = 0; i < SL_ST_LENGTH_BYTES; i++)
        p[i] = (unsigned char)(n >> 8 * i);
}

static int check_tensor(const struct sl_st_tensor *t, struct sl_err *err)
{
    int64_t n = 1;

    if (!t->name[0] || !strcmp(t->name, "__metadata__"))
        return sl_err_set(err, SL_SPEC, "a tensor cannot be named \"%s\"", t->name);
    if (t->n_dims < 1 || t->n_dims > SL_ST_MAX_DIMS)
        return sl_err_set(err, SL_SPEC, "tensor %s: %d dimensions; 1 to %d are possible", t->name,
                          t->n_dims, SL_ST_MAX_DIMS);
    for (int i = 0; i < t->n_dims; i++) {
        if (t->dim[i] < 1 || t->dim[i] > SL_ST_MAX_ELEMENTS / n)
            return sl_err_set(err, SL_SPEC, "tensor %s: size %lld of dimension %d is out of range",
                              t->name, (long long)t->dim[i], i);
        n *= t->dim[i];
    }
    return 0;
}

/* The header with its length in front, padded; the caller frees it. NULL: out of memory. */
static char *make_header(const struct sl_st_tensor *tensors, int n, const json_t *metadata,
                         bool seal, size_t *ret_len)
{
    json_t *root = json_object(), *meta = metadata ? json_deep_copy(metadata) : json_object();
    char *text = NULL, *out = NULL;
    uint64_t at = 0;
    int bad = !root || !meta;

    if (seal)
        bad |= json_object_set_new(meta, "seal", json_string(SL_ST_NO_SEAL));
    if (json_object_size(meta))
        bad |= json_object_set(root, "__metadata__", meta);
    for (int i = 0; i < n && !bad; i++) {
        uint64_t end = at + (uint64_t)sl_st_elements(&tensors[i]) * sizeof(float);
        json_t *shape = json_array();

        for (int d = 0; d < tensors[i].n_dims; d++)
            bad |= json_array_append_new(shape, json_integer(tensors[i].dim[d]));
        bad |= json_object_set_new(root, tensors[i].name,
                                   json_pack("{s:s, s:o, s:[I, I]}", "dtype", "F32", "shape", shape,
                                             "data_offsets", (json_int_t)at, (json_int_t)end));
        at = end;
    }
    if (!bad)
        text = json_dumps(root, JSON_COMPACT);
    if (text) {
        size_t len = strlen(text), padded = (len + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;

        out = malloc(SL_ST_LENGTH_BYTES + padded + 1);
        if (out) {
            put_length((unsigned char *)out, padded);
            memcpy(out + SL_ST_LENGTH_BYTES, text, len);
            memset(out + SL_ST_LENGTH_BYTES + len, ' ', padded - len);
            out[SL_ST_LENGTH_BYTES + padded] = '\0';
            *ret_len = SL_ST_LENGTH_BYTES + padded;
        }
    }
    free(text);
    json_decref(meta);
    json_decref(root);
    return out;
}

/* Writes the tensors behind the header, hashing them when sha is given. */
static int write_data(int fd, const struct sl_st_tensor *tensors, int n, struct sl_sha256 *sha,
                      sl_st_fetch_fn *fetch, void *ctx, struct sl_err *err)
{
    size_t most = 1;
    float *data;
    int rc = 0;

    for (int i = 0; i < n; i++)
        if ((size_t)sl_st_elements(&tensors[i]) > most)
            most = (size_t)sl_st_elements(&tensors[i]);
    data = malloc(most * sizeof *data);
    if (!data)
        return sl_err_set(err, SL_NOMEM, "out of memory: %zu bytes for a tensor",
                          most * sizeof *data);
    for (int i = 0; i < n && !rc; i++) {
        size_t bytes = (size_t)sl_st_elements(&tensors[i]) * sizeof *data;

        rc = fetch(ctx, i, data, err);
        if (!rc && sha)
            sl_sha256_update(sha, data, bytes);
        if (!rc)
            rc = sl_write_all(fd, data, bytes, err);
        if (rc)
            sl_err_wrap(err, rc, "tensor %s", tensors[i].name);
    }
    free(data);
    return rc;
}

static int write_file(int fd, char *header, size_t len, const struct sl_st_tensor *tensors, int n,
                      bool seal, sl_st_fetch_fn *fetch, void *ctx, struct sl_err *err)
{
    struct sl_sha256 sha = {NULL};
    char hex[SL_SHA256_HEX + 1], *digits = NULL;
    int rc = seal ? sl_sha256_init(&sha, err) : 0;

    if (rc)
        return rc;
    if (seal) {
        sl_sha256_update(&sha, header, len);
        digits = strstr(header + SL_ST_LENGTH_BYTES, SL_ST_SEAL_KEY) + strlen(SL_ST_SEAL_KEY);
    }
    rc = sl_write_all(fd, header, len, err);
    if (!rc)
        rc = write_data(fd, tensors, n, seal ? &sha : NULL, fetch, ctx, err);
    if (rc || !seal) {
        sl_sha256_release(&sha);
        return rc;
    }
    sl_sha256_hex(&sha, hex);
    if (pwrite(fd, hex, SL_SHA256_HEX, digits - header) != SL_SHA256_HEX)
        return sl_err_errno(err, "writing the seal");
    return 0;
}

int sl_safetensors_write(const char *path, const struct sl_st_tensor *tensors, int n_tensors,
                         const json_t *metadata, bool seal, sl_st_fetch_fn *fetch, void *ctx,
                         struct sl_err *err)
{
    char tmp[SL_PATH_MAX], dir[SL_PATH_MAX];
    const char *slash = strrchr(path, '/');
    char *header;
    size_t len = 0;
    int fd, rc = sl_path(tmp, err, "%s.tmp", path);

    if (!rc)
        rc = slash ? sl_path(dir, err, "%.*s", slash == path ? 1 : (int)(slash - path), path)
                   : sl_path(dir, err, ".");
    if (!rc && (n_tensors < 0 || n_tensors > SL_ST_MAX_TENSORS))
        rc = sl_err_set(err, SL_SPEC, "%d tensors; the limit is %d", n_tensors, SL_ST_MAX_TENSORS);
    for (int i = 0; i < n_tensors && !rc; i++)
        rc = check_tensor(&tensors[i], err);
    if (rc)
        return sl_err_wrap(err, rc, "writing %s", path);
    header = make_header(tensors, n_tensors, metadata, seal, &len);
    if (!header)
        return sl_err_set(err, SL_NOMEM, "writing %s: out of memory", path);
    if (len - SL_ST_LENGTH_BYTES > SL_ST_HEADER_MAX) {
        free(header);
        return sl_err_set(err, SL_SPEC,
                          "writing %s: its header of %zu bytes is over the limit of %u", path, len,
                          SL_ST_HEADER_MAX);
    }
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        free(header);
        return sl_err_errno(err, "creating %s", tmp);
    }
    rc = write_file(fd, header, len, tensors, n_tensors, seal, fetch, ctx, err);
    free(header);
    if (!rc && fsync(fd))
        rc = sl_err_errno(err, "syncing");
    if (close(fd) && !rc)
        rc = sl_err_errno(err, "closing");
    if (!rc && rename(tmp, path))
        rc = sl_err_errno(err, "renaming %s", tmp);
    if (rc) {
        unlink(tmp);
        return sl_err_wrap(err, rc, "writing %s", path);
    }
    return sl_dir_sync(dir, err);
}

/* Long because the archive and the walk over its objects check each other: a tensor is only as
 * good as the entry that holds its bytes. */
#include "engine/format/torch_zip.h"
#include "engine/format/dequant.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sizes of the records that the zip format (APPNOTE.TXT 6.3) is made of. */
#define END_BYTES 22
#define END64_BYTES 56
#define LOCATOR_BYTES 20
#define CENTRAL_BYTES 46
#define LOCAL_BYTES 30
#define COMMENT_MAX 65535
#define NAME_MAX_BYTES 512 /* of an entry */
#define STEPS_MAX 1000000  /* values looked at in the tree */

struct entry {
    const char *name; /* not NUL-terminated */
    size_t name_len;
    uint64_t local; /* where its record begins */
    uint64_t size;
    const unsigned char *data;
};

struct sl_torch {
    const unsigned char *zip;
    size_t len;
    struct entry *entry; /* sorted by name */
    size_t n_entries;
    struct sl_pickle_doc *doc;
    struct sl_torch_tensor *tensor;
    int n, cap;
    int steps;
};

__attribute__((format(printf, 2, 3))) static int bad(struct sl_err *err, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return sl_err_set(err, SL_DATA, "no checkpoint of torch.save that can be read: %s", text);
}

static uint64_t get(const unsigned char *p, int bytes)
{
    uint64_t v = 0;

    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* ---- the archive ---- */

struct directory {
    uint64_t at, bytes, entries;
};

/* The end record, or the 64-bit one that it stands for. */
static int find_directory(const struct sl_torch *t, struct directory *d, struct sl_err *err)
{
    const unsigned char *z = t->zip, *end = NULL;
    size_t back = t->len < END_BYTES + COMMENT_MAX ? t->len : END_BYTES + COMMENT_MAX;

    for (size_t i = END_BYTES; i <= back && !end; i++)
        if (!memcmp(z + t->len - i, "PK\5\6", 4))
            end = z + t->len - i;
    if (!end)
        return bad(err, "the archive's directory is missing: the file is cut off");
    if (get(end + 4, 2) || get(end + 6, 2))
        return bad(err, "an archive of several parts");
    *d = (struct directory){get(end + 16, 4), get(end + 12, 4), get(end + 10, 2)};
    if (end - z >= LOCATOR_BYTES && !memcmp(end - LOCATOR_BYTES, "PK\6\7", 4)) {
        uint64_t at = get(end - LOCATOR_BYTES + 8, 8);

        if (at > t->len || t->len - at < END64_BYTES || memcmp(z + at, "PK\6\6", 4) != 0)
            return bad(err, "the archive's 64-bit directory is missing");
        *d = (struct directory){get(z + at + 48, 8), get(z + at + 40, 8), get(z + at + 32, 8)};
    }
    if (d->at > t->len || d->bytes > t->len - d->at)
        return bad(err, "the archive's directory lies outside of the file");
    if (d->entries > SL_TORCH_MAX_ENTRIES || d->entries > d->bytes / CENTRAL_BYTES)
        return bad(err, "the archive's directory says %llu entries in %llu bytes",
                   (unsigned long long)d->entries, (unsigned long long)d->bytes);
    return 0;
}

/* Sizes and offsets over 32 bits stand in an extra field, in this order, each only if it is needed.
 */
static int read_extra(const unsigned char *p, size_t n, uint64_t *values[3], struct sl_err *err)
{
    while (n >= 4) {
        size_t len = (size_t)get(p + 2, 2);

        if (len > n - 4)
            return bad(err, "an entry's extra field is cut off");
        if (get(p, 2) == 1) {
            size_t at = 4;

            for (int i = 0; i < 3; i++)
                if (*values[i] == UINT32_MAX) {
                    if (at + 8 > len + 4)
                        return bad(err, "an entry's 64-bit sizes are missing");
                    *values[i] = get(p + at, 8);
                    at += 8;
                }
            return 0;
        }
        p += 4 + len;
        n -= 4 + len;
    }
    return 0;
}

/* The local record must say the same name; the data follows it. */
static int read_local(const struct sl_torch *t, struct entry *e, struct sl_err *err)
{
    const unsigned char *p = t->zip + e->local;
    size_t name_len, extra_len;

    if (e->local > t->len || t->len - e->local < LOCAL_BYTES || memcmp(p, "PK\3\4", 4) != 0)
        return bad(err, "entry '%.*s' is not where the directory says", (int)e->name_len, e->name);
    name_len = (size_t)get(p + 26, 2);
    extra_len = (size_t)get(p + 28, 2);
    if (t->len - e->local - LOCAL_BYTES < name_len + extra_len || name_len != e->name_len ||
        memcmp(p + LOCAL_BYTES, e->name, name_len) != 0)
        return bad(err, "entry '%.*s' has another name in its own record", (int)e->name_len,
                   e->name);
    e->data = p + LOCAL_BYTES + name_len + extra_len;
    if (e->size > t->len - (size_t)(e->data - t->zip))
        return bad(err, "entry '%.*s' of %llu bytes reaches beyond the file", (int)e->name_len,
                   e->name, (unsigned long long)e->size);
    return 0;
}

static bool plain_name(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] < 32 || p[i] > 126)
            return false;
    return n > 0;
}

static int read_central(const struct sl_torch *t, const unsigned char **at,
                        const unsigned char *end, struct entry *e, struct sl_err *err)
{
    const unsigned char *p = *at;
    size_t left = (size_t)(end - p), name_len, extra_len, comment_len;
    uint64_t stored;
    int rc;

    if (left < CENTRAL_BYTES || memcmp(p, "PK\1\2", 4) != 0)
        return bad(err, "the archive's directory is damaged");
    name_len = (size_t)get(p + 28, 2);
    extra_len = (size_t)get(p + 30, 2);
    comment_len = (size_t)get(p + 32, 2);
    if (left - CENTRAL_BYTES < name_len + extra_len + comment_len || name_len > NAME_MAX_BYTES ||
        !plain_name(p + CENTRAL_BYTES, name_len))
        return bad(err, "the archive's directory is damaged");
    e->name = (const char *)p + CENTRAL_BYTES;
    e->name_len = name_len;
    stored = get(p + 20, 4);
    e->size = get(p + 24, 4);
    e->local = get(p + 42, 4);
    rc = read_extra(p + CENTRAL_BYTES + name_len, extra_len,
                    (uint64_t *[3]){&e->size, &stored, &e->local}, err);
    if (rc)
        return rc;
    if (get(p + 8, 2) & 1)
        return bad(err, "entry '%.*s' is encrypted", (int)name_len, e->name);
    if (get(p + 10, 2) || stored != e->size)
        return bad(err, "entry '%.*s' is compressed, which torch.save does not do", (int)name_len,
                   e->name);
    *at = p + CENTRAL_BYTES + name_len + extra_len + comment_len;
    return read_local(t, e, err);
}

static int by_place(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    return x->local < y->local ? -1 : x->local > y->local;
}

static int by_entry_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    size_t n = x->name_len < y->name_len ? x->name_len : y->name_len;
    int c = memcmp(x->name, y->name, n);

    return c ? c : x->name_len < y->name_len ? -1 : x->name_len > y->name_len;
}

static int read_archive(struct sl_torch *t, struct sl_err *err)
{
    struct directory d = {0};
    const unsigned char *at;
    int rc = find_directory(t, &d, err);

    if (rc)
        return rc;
    t->entry = calloc((size_t)d.entries + 1, sizeof *t->entry);
    if (!t->entry)
        return sl_err_set(err, SL_NOMEM, "out of memory for a checkpoint's directory");
    at = t->zip + d.at;
    for (t->n_entries = 0; t->n_entries < d.entries; t->n_entries++) {
        rc = read_central(t, &at, t->zip + d.at + d.bytes, &t->entry[t->n_entries], err);
        if (rc)
            return rc;
    }
    qsort(t->entry, t->n_entries, sizeof *t->entry, by_place);
    for (size_t i = 0; i < t->n_entries; i++) {
        const struct entry *e = &t->entry[i];
        uint64_t end = (uint64_t)(e->data - t->zip) + e->size;

        if (end > (i + 1 < t->n_entries ? e[1].local : d.at))
            return bad(err, "entry '%.*s' overlaps what follows it", (int)e->name_len, e->name);
    }
    qsort(t->entry, t->n_entries, sizeof *t->entry, by_entry_name);
    for (size_t i = 1; i < t->n_entries; i++)
        if (!by_entry_name(&t->entry[i - 1], &t->entry[i]))
            return bad(err, "entry '%.*s' comes twice", (int)t->entry[i].name_len,
                       t->entry[i].name);
    return 0;
}

static const struct entry *find_entry(const struct sl_torch *t, const char *name, size_t len)
{
    struct entry want = {.name = name, .name_len = len};

    return bsearch(&want, t->entry, t->n_entries, sizeof want, by_entry_name);
}

/* ---- the objects ---- */

int64_t sl_torch_elements(const struct sl_torch_tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->n_dims; i++)
        n *= t->dim[i];
    return n;
}

static bool is_contiguous(const struct sl_torch_tensor *t)
{
    int64_t step = 1;

    for (int i = t->n_dims - 1; i >= 0; i--) {
        if (t->dim[i] != 1 && t->stride[i] != step)
            return false;
        step *= t->dim[i];
    }
    return true;
}

/* prefix: the archive's own folder, with its slash. */
static int add_tensor(struct sl_torch *t, const char *prefix, size_t prefix_len, const char *name,
                      const struct sl_pickle_tensor *from, struct sl_err *err)
{
    const struct sl_pickle *s = from->storage;
    const struct sl_storage_info *info = sl_storage_info(s->u.storage.type);
    struct sl_torch_tensor to = {.type = s->u.storage.type, .n_dims = from->n_dims};
    char file[NAME_MAX_BYTES + 1];
    const struct entry *e;
    int n;

    n = snprintf(file, sizeof file, "%.*sdata/%.*s", (int)prefix_len, prefix,
                 s->u.storage.key_len < NAME_MAX_BYTES ? (int)s->u.storage.key_len : 0,
                 s->u.storage.key);
    e = n < (int)sizeof file ? find_entry(t, file, (size_t)n) : NULL;
    if (!e)
        return bad(err, "tensor '%s' has its data in entry '%.64s', which is missing", name, file);
    if ((uint64_t)s->u.storage.elements > e->size / (uint64_t)info->bytes)
        return bad(err, "tensor '%s': entry '%s' has %llu bytes, not %lld elements of %d", name,
                   file, (unsigned long long)e->size, (long long)s->u.storage.elements,
                   info->bytes);
    memcpy(to.dim, from->dim, sizeof to.dim);
    memcpy(to.stride, from->stride, sizeof to.stride);
    to.data = e->data + (uint64_t)from->offset * (uint64_t)info->bytes;
    to.contiguous = is_contiguous(&to);
    /* A view may name one stored element many times (stride 0); nothing that we read does. */
    if (sl_torch_elements(&to) > s->u.storage.elements)
        return bad(err, "tensor '%s' has more elements than its storage", name);
    if (t->n == SL_TORCH_MAX_TENSORS)
        return bad(err, "more than %d tensors", SL_TORCH_MAX_TENSORS);
    if (t->n == t->cap) {
        int cap = t->cap * 2 + 64;
        struct sl_torch_tensor *p = realloc(t->tensor, (size_t)cap * sizeof *p);

        if (!p)
            return sl_err_set(err, SL_NOMEM, "out of memory for %d tensors", cap);
        t->tensor = p;
        t->cap = cap;
    }
    to.name = strdup(name);
    if (!to.name)
        return sl_err_set(err, SL_NOMEM, "out of memory for a tensor's name");
    t->tensor[t->n++] = to;
    return 0;
}

struct walk {
    struct sl_torch *t;
    const char *prefix;
    size_t prefix_len;
    char name[SL_TORCH_NAME_MAX];
    struct sl_err *err;
};

static int walk(struct walk *w, const struct sl_pickle *v, size_t used, int depth)
{
    if (++w->t->steps > STEPS_MAX)
        return bad(w->err, "its dicts hold too many values");
    if (v->type == SL_PK_TENSOR)
        return add_tensor(w->t, w->prefix, w->prefix_len, w->name, v->u.tensor, w->err);
    if (v->type != SL_PK_DICT)
        return 0;
    if (depth == SL_TORCH_MAX_DEPTH)
        return bad(w->err, "dicts in dicts, more than %d deep", SL_TORCH_MAX_DEPTH);
    for (uint32_t i = 0; i + 1 < v->n; i += 2) {
        const struct sl_pickle *key = v->u.item[i];
        size_t n = used;
        int rc;

        if (key->type != SL_PK_STRING)
            continue;
        if (key->n + 2 > sizeof w->name - used || memchr(key->u.text, '\0', key->n))
            return bad(w->err, "a tensor's name is longer than %d bytes or holds a NUL",
                       SL_TORCH_NAME_MAX - 1);
        if (used)
            w->name[n++] = '.';
        memcpy(w->name + n, key->u.text, key->n);
        w->name[n + key->n] = '\0';
        rc = walk(w, v->u.item[i + 1], n + key->n, depth + 1);
        if (rc)
            return rc;
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct sl_torch_tensor *)a)->name,
                  ((const struct sl_torch_tensor *)b)->name);
}

/* The one entry FOLDER/data.pkl. */
static const struct entry *find_pickle(const struct sl_torch *t)
{
    static const char file[] = "/data.pkl";

    for (size_t i = 0; i < t->n_entries; i++) {
        const struct entry *e = &t->entry[i];
        size_t n = sizeof file - 1;

        if (e->name_len > n && !memcmp(e->name + e->name_len - n, file, n) &&
            !memchr(e->name, '/', e->name_len - n))
            return e;
    }
    return NULL;
}

static int read_objects(struct sl_torch *t, struct sl_err *err)
{
    const struct entry *pkl = find_pickle(t), *order;
    struct walk w = {.t = t, .err = err};
    char file[NAME_MAX_BYTES + 16];
    int rc, n;

    if (!pkl)
        return bad(err, "it holds no data.pkl");
    w.prefix = pkl->name;
    w.prefix_len = pkl->name_len - strlen("data.pkl");
    n = snprintf(file, sizeof file, "%.*sbyteorder", (int)w.prefix_len, w.prefix);
    order = find_entry(t, file, (size_t)n);
    if (order && (order->size != 6 || memcmp(order->data, "little", 6) != 0))
        return bad(err, "its numbers are not little-endian");
    rc = sl_pickle_read(pkl->data, (size_t)pkl->size, &t->doc, err);
    if (!rc)
        rc = walk(&w, sl_pickle_root(t->doc), 0, 0);
    if (rc)
        return rc;
    if (t->n)
        qsort(t->tensor, (size_t)t->n, sizeof *t->tensor, by_name);
    for (int i = 1; i < t->n; i++)
        if (!strcmp(t->tensor[i - 1].name, t->tensor[i].name))
            return bad(err, "tensor '%s' comes twice", t->tensor[i].name);
    return 0;
}

int sl_torch_open(const void *data, size_t len, struct sl_torch **ret_torch, struct sl_err *err)
{
    static const unsigned char legacy[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46};
    struct sl_torch *t;
    int rc;

    if (len >= sizeof legacy && !memcmp(data, legacy, sizeof legacy))
        return sl_err_set(err, SL_SPEC,
                          "a checkpoint of PyTorch before 1.6, which is not supported: load it and "
                          "save it again with a newer PyTorch");
    if (len < END_BYTES || memcmp(data, "PK", 2) != 0)
        return bad(err, "it is no zip archive");
    t = calloc(1, sizeof *t);
    if (!t)
        return sl_err_set(err, SL_NOMEM, "out of memory for a checkpoint");
    t->zip = data;
    t->len = len;
    rc = read_archive(t, err);
    if (!rc)
        rc = read_objects(t, err);
    if (rc)
        sl_torch_close(t);
    else
        *ret_torch = t;
    return rc;
}

void sl_torch_close(struct sl_torch *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++)
        free((char *)t->tensor[i].name);
    free(t->tensor);
    free(t->entry);
    sl_pickle_free(t->doc);
    free(t);
}

int sl_torch_count(const struct sl_torch *t)
{
    return t->n;
}

const struct sl_torch_tensor *sl_torch_at(const struct sl_torch *t, int index)
{
    return &t->tensor[index];
}

const struct sl_torch_tensor *sl_torch_find(const struct sl_torch *t, const char *name)
{
    struct sl_torch_tensor want = {.name = name};

    return t->n ? bsearch(&want, t->tensor, (size_t)t->n, sizeof want, by_name) : NULL;
}

/* ---- elements ---- */

void sl_torch_gather(const struct sl_torch_tensor *t, unsigned char *out)
{
    size_t bytes = (size_t)sl_storage_info(t->type)->bytes;
    int64_t n = sl_torch_elements(t), at[SL_PICKLE_MAX_DIMS] = {0}, from = 0;

    if (t->contiguous) {
        memcpy(out, t->data, (size_t)n * bytes);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(out + (size_t)i * bytes, t->data + (size_t)from * bytes, bytes);
        for (int d = t->n_dims - 1; d >= 0; d--) {
            from += t->stride[d];
            if (++at[d] < t->dim[d])
                break;
            from -= t->dim[d] * t->stride[d];
            at[d] = 0;
        }
    }
}

int sl_torch_floats(const struct sl_torch_tensor *t, float *out, struct sl_err *err)
{
    int64_t n = sl_torch_elements(t);
    size_t bytes = (size_t)sl_storage_info(t->type)->bytes;
    enum sl_dtype dtype = t->type == SL_STORAGE_F16    ? SL_DT_F16
                          : t->type == SL_STORAGE_BF16 ? SL_DT_BF16
                                                       : SL_DT_F32;
    unsigned char *copy;

    if (t->type > SL_STORAGE_F64)
        return sl_err_set(err, SL_SPEC,
                          "tensor '%s' is a %s, which holds no floating point numbers", t->name,
                          sl_storage_info(t->type)->name);
    copy = malloc((size_t)n * bytes + 1);
    if (!copy)
        return sl_err_set(err, SL_NOMEM, "out of memory for tensor '%s'", t->name);
    sl_torch_gather(t, copy);
    for (int64_t i = 0; t->type == SL_STORAGE_F64 && i < n; i++) {
        double v;

        memcpy(&v, copy + (size_t)i * sizeof v, sizeof v);
        out[i] = (float)v;
    }
    if (t->type != SL_STORAGE_F64)
        sl_dequant_row(dtype, copy, n, out);
    free(copy);
    return 0;
}

/* Writes what torch.save would: the smallest pickle and archive that say it. */
#include "engine/format/torch_zip.h"
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define FOLDER "archive/"
#define DATA_ALIGN 64 /* as torch aligns storages */
#define LOCAL_BYTES 30
#define PICKLE_MAX (16u << 20)
#define DIRECTORY_MAX (16u << 20)

/* ---- the pickle ---- */

static int put_int(struct sl_buf *b, char opcode, uint64_t v, int bytes)
{
    int bad = opcode ? sl_buf_addc(b, opcode) : 0;

    for (int i = 0; i < bytes && !bad; i++)
        bad = sl_buf_addc(b, (char)(v >> 8 * i));
    return bad;
}

static int put_text(struct sl_buf *b, const char *text)
{
    return put_int(b, 'X', strlen(text), 4) || sl_buf_adds(b, text);
}

/* ('storage', torch.XStorage, 'key', 'cpu', elements) as a persistent id */
static int put_storage(struct sl_buf *b, const struct sl_torch_item *item, int key, uint64_t n)
{
    char name[16];

    snprintf(name, sizeof name, "%d", key);
    return sl_buf_addc(b, '(') || put_text(b, "storage") ||
           sl_buf_addf(b, "ctorch\n%s\n", sl_storage_info(item->type)->name) || put_text(b, name) ||
           put_text(b, "cpu") || put_int(b, 'J', n, 4) || sl_buf_adds(b, "tQ");
}

/* _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()) */
static int put_tensor(struct sl_buf *b, const struct sl_torch_item *item, int key)
{
    uint64_t n = (uint64_t)item->dim[0] * (uint64_t)(item->n_dims == 2 ? item->dim[1] : 1);
    int bad = sl_buf_adds(b, "ctorch._utils\n_rebuild_tensor_v2\n(") ||
              put_storage(b, item, key, n) || put_int(b, 'K', 0, 1);

    bad = bad || sl_buf_addc(b, '(') || put_int(b, 'J', (uint64_t)item->dim[0], 4) ||
          (item->n_dims == 2 && put_int(b, 'J', (uint64_t)item->dim[1], 4)) || sl_buf_adds(b, "t(");
    bad = bad || (item->n_dims == 2 && put_int(b, 'J', (uint64_t)item->dim[1], 4)) ||
          put_int(b, 'J', 1, 4) || sl_buf_adds(b, "t\x89");
    return bad || sl_buf_adds(b, "ccollections\nOrderedDict\n)RtR");
}

static int put_pickle(struct sl_buf *b, const char *dict_name, const struct sl_torch_item *items,
                      int n)
{
    int bad = sl_buf_adds(b, "\x80\x02}") || put_text(b, dict_name) ||
              sl_buf_adds(b, "ccollections\nOrderedDict\n)R(");

    for (int i = 0; i < n && !bad; i++)
        bad = put_text(b, items[i].name) || put_tensor(b, &items[i], i);
    return bad || sl_buf_adds(b, "us.");
}

/* ---- the archive ---- */

/* Appends one stored entry, its data aligned by an extra field as torch does, and its line of the
 * directory. */
static int put_entry(struct sl_buf *out, struct sl_buf *directory, const char *name,
                     const void *data, size_t len)
{
    size_t name_len = strlen(name), local = out->len, at = local + LOCAL_BYTES + name_len + 4;
    size_t pad = (DATA_ALIGN - at % DATA_ALIGN) % DATA_ALIGN;
    uint64_t crc = crc32(0, data, (unsigned)len);
    int bad = sl_buf_adds(out, "PK\3\4") || put_int(out, 0, 0, 2) || put_int(out, 0, 0, 2) ||
              put_int(out, 0, 0, 2) || put_int(out, 0, 0, 4) || put_int(out, 0, crc, 4) ||
              put_int(out, 0, len, 4) || put_int(out, 0, len, 4) || put_int(out, 0, name_len, 2) ||
              put_int(out, 0, 4 + pad, 2) || sl_buf_adds(out, name) || sl_buf_adds(out, "FB") ||
              put_int(out, 0, pad, 2);

    for (size_t i = 0; i < pad && !bad; i++)
        bad = sl_buf_addc(out, 'Z');
    bad = bad || sl_buf_add(out, data, len);
    return bad || sl_buf_adds(directory, "PK\1\2") || put_int(directory, 0, 0, 2) ||
           put_int(directory, 0, 0, 2) || put_int(directory, 0, 0, 2) ||
           put_int(directory, 0, 0, 2) || put_int(directory, 0, 0, 4) ||
           put_int(directory, 0, crc, 4) || put_int(directory, 0, len, 4) ||
           put_int(directory, 0, len, 4) || put_int(directory, 0, name_len, 2) ||
           put_int(directory, 0, 0, 4) || put_int(directory, 0, 0, 8) ||
           put_int(directory, 0, local, 4) || sl_buf_adds(directory, name);
}

static int put_end(struct sl_buf *out, const struct sl_buf *directory, int entries)
{
    size_t at = out->len;

    return sl_buf_add(out, directory->p, directory->len) || sl_buf_adds(out, "PK\5\6") ||
           put_int(out, 0, 0, 4) || put_int(out, 0, (uint64_t)entries, 2) ||
           put_int(out, 0, (uint64_t)entries, 2) || put_int(out, 0, directory->len, 4) ||
           put_int(out, 0, at, 4) || put_int(out, 0, 0, 2);
}

int sl_torch_write(const char *dict_name, const struct sl_torch_item *items, int n,
                   struct sl_buf *out, struct sl_err *err)
{
    struct sl_buf pickle, directory;
    char name[64];
    int bad;

    if (n < 0 || n > SL_TORCH_MAX_ITEMS || out->len)
        return sl_err_set(err, SL_SPEC, "%d tensors for a checkpoint; the limit is %d", n,
                          SL_TORCH_MAX_ITEMS);
    sl_buf_init(&pickle, PICKLE_MAX);
    sl_buf_init(&directory, DIRECTORY_MAX);
    bad = put_pickle(&pickle, dict_name, items, n) ||
          put_entry(out, &directory, FOLDER "data.pkl", pickle.p, pickle.len) ||
          put_entry(out, &directory, FOLDER "byteorder", "little", 6);
    for (int i = 0; i < n && !bad; i++) {
        size_t elements =
            (size_t)items[i].dim[0] * (size_t)(items[i].n_dims == 2 ? items[i].dim[1] : 1);

        snprintf(name, sizeof name, FOLDER "data/%d", i);
        bad = put_entry(out, &directory, name, items[i].data,
                        elements * (size_t)sl_storage_info(items[i].type)->bytes);
    }
    bad = bad || put_entry(out, &directory, FOLDER "version", "3\n", 2) ||
          put_end(out, &directory, n + 3);
    sl_buf_release(&pickle);
    sl_buf_release(&directory);
    return bad ? sl_err_set(err, SL_NOMEM, "out of memory for a checkpoint") : 0;
}

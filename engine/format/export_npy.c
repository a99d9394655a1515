/* NumPy's .npy files (numpy/lib/format.py, version 1.0) as TensorRT-LLM's --prompt_table takes
 * them. */
#include "base/buf.h"
#include "base/file.h"
#include "engine/format/table_forms.h"
#include <stdio.h>
#include <string.h>

#define ALIGN 64
#define MAGIC "\x93NUMPY\x01\x00"
#define MAGIC_BYTES 8
#define LENGTH_BYTES 2

int sl_export_npy(const char *path, const struct sl_tables *t, struct sl_err *err)
{
    int v = 0, hidden = t->n ? t->table[0].hidden : 0, n, bad, rc;
    size_t row, padded;
    char header[256];
    struct sl_buf b;

    for (int i = 0; i < t->n; i++) {
        if (t->table[i].hidden != hidden)
            return sl_err_set(err, SL_SPEC,
                              "writing %s: the table of task '%s' has hidden size %d, that of '%s' "
                              "%d: one array cannot hold both",
                              path, t->table[i].task, t->table[i].hidden, t->table[0].task, hidden);
        v = t->table[i].virtual_tokens > v ? t->table[i].virtual_tokens : v;
    }
    row = (size_t)hidden * sizeof(float);
    n = snprintf(header, sizeof header,
                 "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d), }", t->n, v,
                 hidden);
    padded = (MAGIC_BYTES + LENGTH_BYTES + (size_t)n + 1 + ALIGN - 1) / ALIGN * ALIGN -
             MAGIC_BYTES - LENGTH_BYTES;
    memset(header + n, ' ', padded - (size_t)n);
    header[padded - 1] = '\n';
    sl_buf_init(&b, SL_TABLES_MAX_BYTES);
    bad = sl_buf_add(&b, MAGIC, MAGIC_BYTES) || sl_buf_addc(&b, (char)(padded & 0xff)) ||
          sl_buf_addc(&b, (char)(padded >> 8)) || sl_buf_add(&b, header, padded);
    for (int i = 0; i < t->n && !bad; i++) {
        size_t used = (size_t)t->table[i].virtual_tokens * row, rest = (size_t)v * row - used;
        char *p;

        bad = sl_buf_add(&b, t->table[i].rows, used);
        p = bad ? NULL : sl_buf_reserve(&b, rest + 1);
        bad = bad || !p;
        if (p) {
            memset(p, 0, rest);
            b.len += rest;
        }
    }
    rc = bad ? sl_err_set(err, SL_NOMEM, "writing %s: out of memory, or over %u bytes", path,
                          SL_TABLES_MAX_BYTES)
             : sl_file_write(path, b.p, b.len, err);
    sl_buf_release(&b);
    return rc;
}

#include "base/tfevents.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_MAX (1u << 20)
#define START 1 /* SessionLog.SessionStatus */

/* Tags of protocol buffers: the field's number and what follows. */
#define VARINT(field) ((field) << 3)
#define FIXED64(field) ((field) << 3 | 1)
#define BYTES(field) ((field) << 3 | 2)
#define FIXED32(field) ((field) << 3 | 5)

struct file {
    char trial[SL_TFEVENTS_NAME_MAX]; /* "": the run's own */
    struct sl_buf bytes;
    bool metrics; /* there are some */
};

struct sl_tfevents {
    char run[64];
    int64_t first_s;
    struct file *files; /* the first one is the run's */
    int n;
};

/* ---- records --------------------------------------------------------------------------------- */

/* Castagnoli's CRC, as in RFC 3720. */
static uint32_t crc32c(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t crc = ~0u;

    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static void put_le(unsigned char *to, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

static int add_le(struct sl_buf *b, uint64_t value, int bytes)
{
    unsigned char text[8];

    put_le(text, value, bytes);
    return sl_buf_add(b, text, (size_t)bytes);
}

static int add_masked_crc(struct sl_buf *b, const void *data, size_t len)
{
    uint32_t crc = crc32c(data, len);

    return add_le(b, (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8u), 4);
}

static int add_record(struct sl_buf *b, const struct sl_buf *event)
{
    unsigned char len[8];
    int rc;

    put_le(len, event->len, sizeof len);
    rc = sl_buf_add(b, len, sizeof len);
    rc = rc ? rc : add_masked_crc(b, len, sizeof len);
    rc = rc ? rc : sl_buf_add(b, event->p, event->len);
    return rc ? rc : add_masked_crc(b, event->p, event->len);
}

static int add_varint(struct sl_buf *b, uint64_t value)
{
    int rc = 0;

    for (; !rc && value > 127; value >>= 7)
        rc = sl_buf_addc(b, (char)(value | 128));
    return rc ? rc : sl_buf_addc(b, (char)value);
}

static int add_bytes(struct sl_buf *b, int field, const void *data, size_t len)
{
    int rc = add_varint(b, BYTES((unsigned)field));

    rc = rc ? rc : add_varint(b, len);
    return rc ? rc : sl_buf_add(b, data, len);
}

/* ---- events ---------------------------------------------------------------------------------- */

/* An Event with its time and step, and one more field. */
static int add_event(struct sl_buf *b, int64_t time_ms, int64_t step, int field, const void *data, size_t len)
{
    double seconds = (double)time_ms / 1000;
    struct sl_buf event;
    uint64_t bits;
    int rc;

    memcpy(&bits, &seconds, sizeof bits);
    sl_buf_init(&event, EVENT_MAX);
    rc = add_varint(&event, FIXED64(1));
    rc = rc ? rc : add_le(&event, bits, 8);
    if (!rc && step)
        rc = add_varint(&event, VARINT(2));
    if (!rc && step)
        rc = add_varint(&event, (uint64_t)step);
    rc = rc ? rc : add_bytes(&event, field, data, len);
    rc = rc ? rc : add_record(b, &event);
    sl_buf_release(&event);
    return rc;
}

const char *sl_tfevents_name(const char *metric)
{
    return strcmp(metric, "loss") ? metric : "reduced_train_loss";
}

/* One Summary.Value of a Summary. */
static int add_value(struct sl_buf *summary, const char *tag, double number)
{
    float value = (float)number;
    struct sl_buf one;
    uint32_t bits;
    int rc;

    memcpy(&bits, &value, sizeof bits);
    sl_buf_init(&one, EVENT_MAX);
    rc = add_bytes(&one, 1, tag, strlen(tag));
    rc = rc ? rc : add_varint(&one, FIXED32(2));
    rc = rc ? rc : add_le(&one, bits, 4);
    rc = rc ? rc : add_bytes(summary, 1, one.p, one.len);
    sl_buf_release(&one);
    return rc;
}

static int add_summary(struct file *f, int64_t time_ms, const json_t *data)
{
    struct sl_buf summary;
    const char *name;
    json_t *value;
    int rc = 0;

    sl_buf_init(&summary, EVENT_MAX);
    json_object_foreach((json_t *)(uintptr_t)data, name, value)
        if (!rc && json_is_number(value) && strcmp(name, "step") != 0)
            rc = add_value(&summary, sl_tfevents_name(name), json_number_value(value));
    if (!rc && summary.len) {
        rc = add_event(&f->bytes, time_ms, sl_json_int(data, "step", 0), 5, summary.p, summary.len);
        f->metrics = true;
    }
    sl_buf_release(&summary);
    return rc;
}

/* Steps that come again, from the one after the last that its checkpoint holds, are forgotten. */
static int add_start(struct file *f, int64_t time_ms, int64_t step)
{
    const char log[] = {VARINT(1), START};

    return add_event(&f->bytes, time_ms, step + 1, 7, log, sizeof log);
}

/* ---- files ----------------------------------------------------------------------------------- */

static bool good_name(const char *trial)
{
    size_t len = strlen(trial);

    return len < SL_TFEVENTS_NAME_MAX && *trial != '.' &&
           strspn(trial, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

/* NULL: there are too many, or no memory is left. */
static struct file *file_of(struct sl_tfevents *t, const char *trial, int64_t time_ms)
{
    static const char version[] = "brain.Event:2";
    struct file *f;

    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->files[i].trial, trial))
            return &t->files[i];
    if (t->n == SL_TFEVENTS_TRIALS_MAX + 1 || !(f = realloc(t->files, ((size_t)t->n + 1) * sizeof *f)))
        return NULL;
    t->files = f;
    f = &t->files[t->n++];
    snprintf(f->trial, sizeof f->trial, "%s", trial);
    f->metrics = false;
    sl_buf_init(&f->bytes, SL_TFEVENTS_FILE_MAX);
    return add_event(&f->bytes, time_ms, 0, 3, version, sizeof version - 1) ? NULL : f;
}

int sl_tfevents_new(const char *run, struct sl_tfevents **ret_t, struct sl_err *err)
{
    struct sl_tfevents *t = calloc(1, sizeof *t);

    if (!t)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    snprintf(t->run, sizeof t->run, "%s", run);
    *ret_t = t;
    return 0;
}

int sl_tfevents_add(struct sl_tfevents *t, const json_t *event, struct sl_err *err)
{
    const char *type = sl_json_str(event, "type", "");
    const json_t *data = json_object_get(event, "data");
    const char *trial = sl_json_str(data, "trial", "");
    int64_t time_ms = sl_json_int(event, "time_ms", 0);
    struct file *f;
    int rc = 0;

    if (!strcmp(type, "metric") && good_name(trial)) {
        if (!t->n)
            t->first_s = time_ms / 1000;
        f = file_of(t, "", time_ms);
        if (f && *trial)
            f = file_of(t, trial, time_ms);
        rc = f ? add_summary(f, time_ms, data) : SL_NOMEM;
    } else if (!strcmp(type, "start")) {
        for (int i = 0; !rc && i < t->n; i++)
            rc = add_start(&t->files[i], time_ms, sl_json_int(data, "step", 0));
    }
    return rc ? sl_err_set(err, SL_NOMEM, "TensorBoard's events of run %s are more than %u MiB, or its trials more than %d",
                           t->run, SL_TFEVENTS_FILE_MAX >> 20, SL_TFEVENTS_TRIALS_MAX)
              : 0;
}

int sl_tfevents_write(struct sl_tfevents *t, const char *dir, struct sl_err *err)
{
    char place[SL_PATH_MAX], path[SL_PATH_MAX];
    int rc = 0;

    for (int i = 0; !rc && i < t->n; i++) {
        const struct file *f = &t->files[i];

        if (!f->metrics)
            continue;
        rc = sl_path(place, err, "%s%s%s", dir, *f->trial ? "/" : "", f->trial);
        if (!rc)
            rc = sl_mkdirs(place, err);
        if (!rc)
            rc = sl_path(path, err, "%s/events.out.tfevents.%010lld.%s", place, (long long)t->first_s, t->run);
        if (!rc)
            rc = sl_file_write(path, f->bytes.p, f->bytes.len, err);
    }
    return rc;
}

void sl_tfevents_free(struct sl_tfevents *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++)
        sl_buf_release(&t->files[i].bytes);
    free(t->files);
    free(t);
}

#include "engine/format/tar.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define BLOCK 512
#define INFLATE_BYTES (256u << 10)
#define PAX_MAX (1u << 20) /* bytes of an extended header */
#define NAME_FIELD 100
#define WRITE_MAX (1u << 30)

/* ---- gzip ---- */

static int temporary(const char *path, int *ret_fd, struct sl_err *err)
{
    const char *slash = strrchr(path, '/'), *tmp = getenv("TMPDIR");
    char dir[SL_PATH_MAX];
    int fd, rc = slash ? sl_path(dir, err, "%.*s", slash == path ? 1 : (int)(slash - path), path)
                       : sl_path(dir, err, ".");

    if (rc)
        return rc;
    fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        fd = open(tmp && *tmp ? tmp : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return sl_err_errno(err, "making a temporary file for the unpacked archive in %s or TMPDIR",
                            dir);
    *ret_fd = fd;
    return 0;
}

static int inflate_all(z_stream *z, const struct sl_map *from, int fd, struct sl_err *err)
{
    unsigned char *out = malloc(INFLATE_BYTES);
    uint64_t most = SL_TAR_FREE_BYTES + (uint64_t)SL_TAR_MAX_RATIO * from->len, total = 0;
    size_t fed = 0;
    int state = Z_OK, rc = 0;

    if (!out)
        return sl_err_set(err, SL_NOMEM, "out of memory for unpacking");
    while (!rc && state != Z_STREAM_END) {
        size_t left = from->len - fed, n = left < INFLATE_BYTES ? left : INFLATE_BYTES;

        if (!z->avail_in) {
            z->next_in = (unsigned char *)(uintptr_t)(from->data + fed);
            z->avail_in = (unsigned)n;
            fed += n;
        }
        z->next_out = out;
        z->avail_out = INFLATE_BYTES;
        state = inflate(z, Z_NO_FLUSH);
        n = INFLATE_BYTES - z->avail_out;
        total += n;
        if (state != Z_OK && state != Z_STREAM_END)
            rc = sl_err_set(err, SL_DATA, "its gzip data is %s",
                            state == Z_BUF_ERROR ? "cut off" : "damaged");
        else if (total > most)
            rc = sl_err_set(err, SL_DATA,
                            "it unpacks to more than %d times its size, which weights do not: "
                            "gunzip it by hand if it is what you want",
                            SL_TAR_MAX_RATIO);
        else
            rc = sl_write_all(fd, out, n, err);
    }
    free(out);
    return rc;
}

static int map_fd(int fd, struct sl_map *ret_map, struct sl_err *err)
{
    struct stat st;
    void *p = NULL;

    if (fstat(fd, &st))
        return sl_err_errno(err, "looking at the unpacked archive");
    if (st.st_size) {
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            return sl_err_errno(err, "mapping the unpacked archive");
    }
    *ret_map = (struct sl_map){p, (size_t)st.st_size};
    return 0;
}

/* Replaces the map of a gzip'd file by one of what is in it. */
static int gunzip(const char *path, struct sl_map *map, struct sl_err *err)
{
    struct sl_map unpacked = {NULL, 0};
    z_stream z = {0};
    int fd = -1, rc = temporary(path, &fd, err);

    if (rc)
        return rc;
    if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK) {
        close(fd);
        return sl_err_set(err, SL_NOMEM, "out of memory for unpacking");
    }
    rc = inflate_all(&z, map, fd, err);
    inflateEnd(&z);
    if (!rc)
        rc = map_fd(fd, &unpacked, err);
    close(fd);
    if (rc)
        return rc;
    sl_map_close(map);
    *map = unpacked;
    return 0;
}

/* ---- headers ---- */

/* Octal, or base 256 when the first bit is set (GNU, for sizes over 8 GiB). */
static bool number(const unsigned char *p, size_t n, uint64_t *ret_v)
{
    uint64_t v = 0;

    if (p[0] & 0x80) {
        for (size_t i = 1; i < n; i++) {
            if (v >> 55)
                return false;
            v = v << 8 | p[i];
        }
        *ret_v = v;
        return !(p[0] & 0x7f);
    }
    for (size_t i = 0; i < n && p[i] != ' ' && p[i] != '\0'; i++) {
        if (p[i] < '0' || p[i] > '7' || v >> 60)
            return false;
        v = v << 3 | (uint64_t)(p[i] - '0');
    }
    *ret_v = v;
    return true;
}

static unsigned checksum(const unsigned char *h)
{
    unsigned sum = 8 * ' '; /* its own field counts as spaces */

    for (int i = 0; i < BLOCK; i++)
        sum += i >= 148 && i < 156 ? 0 : h[i];
    return sum;
}

struct header {
    char type;
    uint64_t size;
    char name[SL_TAR_NAME_MAX];
};

static int read_header(const unsigned char *h, size_t at, struct header *ret, struct sl_err *err)
{
    uint64_t sum = 0;
    int prefix = !memcmp(h + 257, "ustar\0", 6) ? (int)strnlen((const char *)h + 345, 155) : 0;

    if (!number(h + 148, 8, &sum) || sum != checksum(h))
        return sl_err_set(err, SL_DATA, "the tar header at byte %zu is damaged", at);
    if (!number(h + 124, 12, &ret->size))
        return sl_err_set(err, SL_DATA, "the tar header at byte %zu has no size", at);
    ret->type = (char)h[156];
    snprintf(ret->name, sizeof ret->name, "%.*s%s%.*s", prefix, (const char *)h + 345,
             prefix ? "/" : "", (int)strnlen((const char *)h, NAME_FIELD), (const char *)h);
    return 0;
}

/* What an extended header changes in the next one. */
struct pending {
    char name[SL_TAR_NAME_MAX]; /* "": nothing */
    bool has_size;
    uint64_t size;
};

static int set_name(struct pending *p, const char *text, size_t len, struct sl_err *err)
{
    len = strnlen(text, len);
    if (len >= sizeof p->name)
        return sl_err_set(err, SL_DATA, "a member's name is longer than %d bytes",
                          SL_TAR_NAME_MAX - 1);
    memcpy(p->name, text, len);
    p->name[len] = '\0';
    return 0;
}

/* Records "LENGTH KEY=VALUE\n"; path and size are what counts here. */
static int read_pax(const char *text, size_t len, struct pending *p, struct sl_err *err)
{
    while (len) {
        size_t n = 0, digits = 0;

        while (digits < len && digits < 8 && text[digits] >= '0' && text[digits] <= '9')
            n = n * 10 + (size_t)(text[digits++] - '0');
        if (!digits || n > len || n < digits + 4 || text[digits] != ' ' || text[n - 1] != '\n')
            return sl_err_set(err, SL_DATA, "an extended tar header is damaged");
        const char *record = text + digits + 1;
        size_t left = n - digits - 2;

        if (left > 5 && !memcmp(record, "path=", 5)) {
            int rc = set_name(p, record + 5, left - 5, err);

            if (rc)
                return rc;
        } else if (left > 5 && !memcmp(record, "size=", 5)) {
            p->size = 0;
            p->has_size = true;
            for (size_t i = 5; i < left; i++) {
                if (record[i] < '0' || record[i] > '9' || p->size > UINT64_MAX / 20)
                    return sl_err_set(err, SL_DATA, "an extended tar header has no right size");
                p->size = p->size * 10 + (uint64_t)(record[i] - '0');
            }
        }
        text += n;
        len -= n;
    }
    return 0;
}

static int add_member(struct sl_tar *t, const char *name, const unsigned char *data, size_t len,
                      struct sl_err *err)
{
    while (!strncmp(name, "./", 2))
        name += 2;
    if (sl_tar_find(t, name))
        return sl_err_set(err, SL_DATA, "member '%.200s' comes twice", name);
    if (t->n == SL_TAR_MAX_MEMBERS)
        return sl_err_set(err, SL_DATA, "more than %d members", SL_TAR_MAX_MEMBERS);
    if (t->n % 64 == 0) {
        struct sl_tar_member *p = realloc(t->member, (size_t)(t->n + 64) * sizeof *p);

        if (!p)
            return sl_err_set(err, SL_NOMEM, "out of memory for an archive's members");
        t->member = p;
    }
    t->member[t->n].name = strdup(name);
    if (!t->member[t->n].name)
        return sl_err_set(err, SL_NOMEM, "out of memory for an archive's members");
    t->member[t->n].data = data;
    t->member[t->n].len = len;
    t->n++;
    return 0;
}

static int read_members(struct sl_tar *t, struct sl_err *err)
{
    static const unsigned char zeros[BLOCK];
    struct pending pending = {.name = ""};
    size_t at = 0;
    int rc = 0;

    while (!rc && t->map.len - at >= BLOCK && memcmp(t->map.data + at, zeros, BLOCK) != 0) {
        struct header h = {0};
        const unsigned char *data = t->map.data + at + BLOCK;
        size_t room = t->map.len - at - BLOCK, blocks;
        bool extended;

        rc = read_header(t->map.data + at, at, &h, err);
        if (rc)
            return rc;
        extended = h.type == 'L' || h.type == 'x' || h.type == 'g' || h.type == 'K';
        if (!extended && pending.has_size)
            h.size = pending.size;
        if (h.size > room)
            return sl_err_set(
                err, SL_DATA,
                "member '%.200s' of %llu bytes reaches beyond the file: it is cut off",
                pending.name[0] ? pending.name : h.name, (unsigned long long)h.size);
        if (extended && h.size > PAX_MAX)
            return sl_err_set(err, SL_DATA, "an extended tar header of %llu bytes",
                              (unsigned long long)h.size);
        if (h.type == 'L')
            rc = set_name(&pending, (const char *)data, (size_t)h.size, err);
        else if (h.type == 'x')
            rc = read_pax((const char *)data, (size_t)h.size, &pending, err);
        else if (h.type == '0' || h.type == '\0' || h.type == '7')
            rc = add_member(t, pending.name[0] ? pending.name : h.name, data, (size_t)h.size, err);
        if (!extended)
            pending = (struct pending){.name = ""};
        blocks = (size_t)h.size / BLOCK + (h.size % BLOCK != 0);
        at = blocks > room / BLOCK ? t->map.len : at + BLOCK + blocks * BLOCK;
    }
    if (!rc && !t->n)
        rc = sl_err_set(err, SL_DATA, "an archive without files");
    return rc;
}

int sl_tar_open(const char *path, struct sl_tar *ret_tar, struct sl_err *err)
{
    struct sl_tar t = {0};
    int rc = sl_map_open(path, &t.map, err);

    if (rc)
        return rc;
    if (t.map.len > 2 && t.map.data[0] == 0x1f && t.map.data[1] == 0x8b)
        rc = gunzip(path, &t.map, err);
    if (!rc)
        rc = read_members(&t, err);
    if (rc)
        sl_tar_close(&t);
    else
        *ret_tar = t;
    return rc;
}

void sl_tar_close(struct sl_tar *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++)
        free(t->member[i].name);
    free(t->member);
    sl_map_close(&t->map);
    *t = (struct sl_tar){0};
}

const struct sl_tar_member *sl_tar_find(const struct sl_tar *t, const char *name)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->member[i].name, name))
            return &t->member[i];
    return NULL;
}

/* ---- writing ---- */

static void put_header(unsigned char *h, const struct sl_tar_member *m)
{
    memset(h, 0, BLOCK);
    snprintf((char *)h, NAME_FIELD, "%s", m->name);
    memcpy(h + 100, "0000644", 8);
    memcpy(h + 108, "0000000", 8);
    memcpy(h + 116, "0000000", 8);
    snprintf((char *)h + 124, 12, "%011zo", m->len);
    memcpy(h + 136, "00000000000", 12); /* 1970: the same content gives the same bytes */
    h[156] = '0';
    memcpy(h + 257, "ustar", 6);
    h[263] = h[264] = '0'; /* its version */
    snprintf((char *)h + 148, 8, "%06o", checksum(h));
    h[155] = ' ';
}

int sl_tar_write(const char *path, const struct sl_tar_member *members, int n, struct sl_err *err)
{
    static const unsigned char zeros[2 * BLOCK];
    struct sl_buf b;
    int bad = 0, rc;

    sl_buf_init(&b, WRITE_MAX);
    for (int i = 0; i < n && !bad; i++) {
        unsigned char h[BLOCK];

        put_header(h, &members[i]);
        bad = sl_buf_add(&b, h, BLOCK) || sl_buf_add(&b, members[i].data, members[i].len) ||
              sl_buf_add(&b, zeros, (BLOCK - members[i].len % BLOCK) % BLOCK);
    }
    bad = bad || sl_buf_add(&b, zeros, sizeof zeros);
    rc = bad ? sl_err_set(err, SL_NOMEM, "out of memory, or over %u bytes, for %s", WRITE_MAX, path)
             : sl_file_write(path, b.p, b.len, err);
    sl_buf_release(&b);
    return rc;
}

#include "tests/fuzz/fuzz.h"
#include "base/file.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *fuzz_file(const void *data, size_t size)
{
    static char path[64];
    static int fd = -1;

    if (fd < 0) {
        fd = memfd_create("input", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    fuzz_check(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    return path;
}

static char dir[SL_PATH_MAX];

static void remove_dir(void)
{
    sl_rmtree(dir, NULL);
}

const char *fuzz_dir(void)
{
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/sl-fuzz-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
        fuzz_check(mkdtemp(dir) && atexit(remove_dir) == 0);
    }
    return dir;
}

char *fuzz_text(const void *data, size_t size)
{
    char *text = malloc(size + 1);

    fuzz_check(text);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    return text;
}

/* Stand in for sl_map_open and sl_map_close (the linker's --wrap). A map's last page goes on after the file's end,
 * where no sanitizer looks; a heap block of the file's size does not. */
static void *copies[16]; /* those that are open; other maps were made elsewhere */

int __wrap_sl_map_open(const char *path, struct sl_map *ret_map, struct sl_err *err);
void __wrap_sl_map_close(struct sl_map *map);
int __real_sl_map_open(const char *path, struct sl_map *ret_map, struct sl_err *err);
void __real_sl_map_close(struct sl_map *map);

int __wrap_sl_map_open(const char *path, struct sl_map *ret_map, struct sl_err *err)
{
    struct sl_map map;
    int rc = __real_sl_map_open(path, &map, err);

    if (rc)
        return rc;
    ret_map->len = map.len;
    ret_map->data = NULL;
    if (map.len) {
        size_t i = 0;
        while (i < sizeof copies / sizeof *copies && copies[i])
            i++;
        fuzz_check(i < sizeof copies / sizeof *copies && (copies[i] = malloc(map.len)));
        ret_map->data = memcpy(copies[i], map.data, map.len);
    }
    __real_sl_map_close(&map);
    return 0;
}

void __wrap_sl_map_close(struct sl_map *map)
{
    for (size_t i = 0; map && map->data && i < sizeof copies / sizeof *copies; i++)
        if (copies[i] == map->data) {
            free(copies[i]);
            copies[i] = NULL;
            *map = (struct sl_map){NULL, 0};
        }
    __real_sl_map_close(map);
}

enum { TAR_BLOCK = 512, TAR_SIZE_AT = 124, TAR_SIZE_LEN = 12, TAR_SUM_AT = 148, TAR_SUM_LEN = 8 };

void fuzz_fix_tar(uint8_t *tar, size_t size)
{
    for (size_t at = 0; at + TAR_BLOCK <= size;) {
        unsigned sum = 0;
        char text[TAR_SIZE_LEN + 1] = "";

        memset(tar + at + TAR_SUM_AT, ' ', TAR_SUM_LEN);
        for (size_t i = 0; i < TAR_BLOCK; i++)
            sum += tar[at + i];
        if (sum == TAR_SUM_LEN * ' ') { /* a block of zeros: the end */
            memset(tar + at + TAR_SUM_AT, 0, TAR_SUM_LEN);
            return;
        }
        snprintf(text, sizeof text, "%06o", sum);
        memcpy(tar + at + TAR_SUM_AT, text, 7);
        memcpy(text, tar + at + TAR_SIZE_AT, TAR_SIZE_LEN);
        text[TAR_SIZE_LEN] = '\0';
        unsigned long long len = strtoull(text, NULL, 8);
        if (len > size - at - TAR_BLOCK)
            return;
        at += TAR_BLOCK + (size_t)(len + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    }
}

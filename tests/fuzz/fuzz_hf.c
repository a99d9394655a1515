/* Hugging Face directories. The input is config.json, a NUL, and model.safetensors; or, when it begins with a NUL,
 * after that model.safetensors.index.json, a NUL, config.json, a NUL, and a shard that two names stand for. */
#include "base/file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/model.h"
#include <string.h>
#include <unistd.h>

static const char *const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json", "a.safetensors",
                                    "b.safetensors"};
enum { CONFIG, WEIGHTS, INDEX, SHARD_A, SHARD_B, FILES };

static void put(int file, const uint8_t *data, size_t size)
{
    char path[SL_PATH_MAX];

    fuzz_check(sl_path(path, NULL, "%s/%s", fuzz_dir(), names[file]) == 0);
    FILE *f = fopen(path, "we");
    fuzz_check(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
}

/* The bytes before the next NUL, which is passed over. */
static void put_text(int file, const uint8_t **data, size_t *size)
{
    const uint8_t *end = memchr(*data, '\0', *size);
    size_t len = end ? (size_t)(end - *data) : *size;

    put(file, *data, len);
    *data += end ? len + 1 : len;
    *size -= end ? len + 1 : len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[SL_PATH_MAX];

    if (size && data[0] == '\0') {
        data++;
        size--;
        put_text(INDEX, &data, &size);
        put_text(CONFIG, &data, &size);
        put(SHARD_A, data, size);
        put(SHARD_B, data, size);
    } else {
        put_text(CONFIG, &data, &size);
        put(WEIGHTS, data, size);
    }
    fuzz_use_model(fuzz_dir());
    for (int i = 0; i < FILES; i++) {
        fuzz_check(sl_path(path, NULL, "%s/%s", fuzz_dir(), names[i]) == 0);
        unlink(path);
    }
    return 0;
}

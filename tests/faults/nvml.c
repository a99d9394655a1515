/* NVIDIA's management library with two GPUs that are used as a file says: for machines that have none.
 *
 * The file that SL_NVML_FILE names holds "PERCENT BYTES" of GPU 0 (GPU 1 has one more of each), or "hang": then the
 * driver never answers. The signatures are nvml.h's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_FOUND 6
#define N 2

typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;
typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

int nvmlInit_v2(void);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device);
int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device);
int nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length);
int nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates);
int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory);

struct nvmlDevice_st {
    const char *uuid;
};
static struct nvmlDevice_st devices[N] = {{"GPU-5a11b0de-0000-0000-0000-000000000000"},
                                          {"GPU-77c0ffee-0000-0000-0000-000000000000"}};
static int begun;

static void read_file(unsigned *ret_percent, unsigned long long *ret_bytes)
{
    const char *path = getenv("SL_NVML_FILE");
    FILE *f = path ? fopen(path, "re") : NULL;
    char text[64] = "";

    *ret_percent = 0;
    *ret_bytes = 0;
    if (f && fgets(text, sizeof text, f) && !strncmp(text, "hang", 4))
        for (;;)
            pause();
    sscanf(text, "%u %llu", ret_percent, ret_bytes);
    if (f)
        fclose(f);
}

int nvmlInit_v2(void)
{
    begun = 1;
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = N;
    return begun ? 0 : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    if (!begun || index >= N)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    for (int i = 0; begun && i < N; i++)
        if (!strcmp(devices[i].uuid, uuid)) {
            *device = &devices[i];
            return 0;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length)
{
    snprintf(uuid, length, "%s", device->uuid);
    return 0;
}

int nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    unsigned long long bytes;

    rates->memory = 99; /* of the memory's time: nobody asks for it */
    read_file(&rates->gpu, &bytes);
    rates->gpu += device == &devices[1];
    return 0;
}

int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    unsigned percent;

    memory->total = 1ull << 40;
    read_file(&percent, &memory->used);
    memory->used += device == &devices[1];
    memory->free = memory->total - memory->used;
    return 0;
}

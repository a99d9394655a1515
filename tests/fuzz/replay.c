/* A target without libFuzzer: runs it over files and folders of files, each once.
 * usage: NAME PATH ...     "N inputs" on standard output; a fault ends the process, after the name of the input. */
#include "base/buf.h"
#include "base/file.h"
#include "tests/fuzz/fuzz.h"
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_MAX (1u << 20)

/* The input that runs when a sanitizer ends the process: its handlers print, this names the file before. */
static int run_file(const char *path)
{
    struct sl_buf input;
    struct sl_err err = SL_ERR_INIT;

    sl_buf_init(&input, INPUT_MAX);
    if (sl_file_read(path, &input, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    fprintf(stderr, "input %s\n", path);
    /* Of exactly its size, so that reading one byte beyond it is caught. */
    uint8_t *exact = malloc(input.len ? input.len : 1);
    fuzz_check(exact);
    memcpy(exact, input.p, input.len);
    LLVMFuzzerTestOneInput(exact, input.len);
    free(exact);
    sl_buf_release(&input);
    return 1;
}

static int run_path(const char *path)
{
    char below[SL_PATH_MAX];
    struct dirent *e;
    struct stat st;
    int n = 0;

    if (stat(path, &st)) {
        perror(path);
        exit(1);
    }
    if (!S_ISDIR(st.st_mode))
        return run_file(path);
    DIR *d = opendir(path);
    fuzz_check(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.' && sl_path(below, NULL, "%s/%s", path, e->d_name) == 0)
            n += run_path(below);
    closedir(d);
    return n;
}

int main(int argc, char **argv)
{
    int n = 0;

    for (int i = 1; i < argc; i++)
        n += run_path(argv[i]);
    printf("%d inputs\n", n);
    return n > 0 ? 0 : 1;
}

/* What the fuzz targets share.
 *
 * tests/fuzz/fuzz_NAME.c is one target: LLVMFuzzerTestOneInput gives its input to one parser, uses what
 * came out, and checks what the parser's header promises of it; a broken promise aborts. libFuzzer
 * drives it in `make fuzz`, replay.c in `make test`. One thread. */
#ifndef SL_TESTS_FUZZ_H
#define SL_TESTS_FUZZ_H
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An assertion that no build turns off. */
#define fuzz_check(what)                                                                           \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #what);                     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
/* What every failed call owes: a negative code, the same in err, and words. */
#define fuzz_check_error(rc, err) fuzz_check((rc) < 0 && (err).code == (rc) && (err).msg[0])

/* The path of a file in memory with this content; there is one, so it lasts until the next call. */
const char *fuzz_file(const void *data, size_t size);
/* A folder of this process, empty at first, removed at its end. */
const char *fuzz_dir(void);
/* A copy with a NUL behind it; the caller frees it. */
char *fuzz_text(const void *data, size_t size);

/* Tar headers carry a checksum that mutation breaks; this puts it right, member after member. */
void fuzz_fix_tar(uint8_t *tar, size_t size);

#endif

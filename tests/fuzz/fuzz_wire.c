/* Lines between agent and worker, as they come in pieces. The first byte chooses the pieces' size. */
#include "base/wire.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_buf buf;
    size_t piece = size ? 1 + data[0] : 1, at = size ? 1 : 0;
    int bad = 0, good = 0, lines = 0;

    for (size_t i = at; i < size; i++)
        lines += data[i] == '\n';
    sl_buf_init(&buf, SL_WIRE_LINE_MAX);
    while (at < size) {
        size_t n = size - at < piece ? size - at : piece;
        fuzz_check(sl_buf_add(&buf, data + at, n) == 0);
        at += n;
        for (json_t *event; (event = sl_wire_next(&buf, &bad)); good++) {
            fuzz_check(json_is_object(event));
            json_decref(event);
        }
    }
    fuzz_check(good + bad == lines);
    sl_buf_release(&buf);
    return 0;
}

// See spm.h.
extern "C" {
#include "base/err.h"
}
#include "engine/text/spm.h"
#include <exception>
#include <new>
#include <sentencepiece_processor.h>
#include <vector>

struct sl_spm {
    sentencepiece::SentencePieceProcessor processor;
};

// Runs what may throw.
template <typename F> static int guarded(struct sl_err *err, F f)
{
    try {
        return f();
    } catch (const std::bad_alloc &) {
        return sl_err_set(err, SL_NOMEM, "out of memory for a SentencePiece model");
    } catch (const std::exception &e) {
        return sl_err_set(err, SL_DATA, "SentencePiece: %.512s", e.what());
    } catch (...) {
        return sl_err_set(err, SL_DATA, "SentencePiece failed");
    }
}

int sl_spm_new(const void *data, size_t len, struct sl_spm **ret_spm, struct sl_err *err)
{
    struct sl_spm *s = nullptr;
    int rc = guarded(err, [&] {
        s = new sl_spm;
        const auto status = s->processor.LoadFromSerializedProto(
            absl::string_view(static_cast<const char *>(data), len));
        return status.ok() ? 0
                           : sl_err_set(err, SL_DATA, "SentencePiece refuses the model: %.512s",
                                        status.error_message());
    });
    if (rc < 0)
        delete s;
    else
        *ret_spm = s;
    return rc;
}

void sl_spm_free(struct sl_spm *s)
{
    delete s;
}

int sl_spm_bos(const struct sl_spm *s)
{
    return s->processor.bos_id();
}

int sl_spm_eos(const struct sl_spm *s)
{
    return s->processor.eos_id();
}

int sl_spm_encode(const struct sl_spm *s, const char *text, size_t len, sl_spm_ids_fn *fn,
                  void *arg, struct sl_err *err)
{
    return guarded(err, [&] {
        std::vector<int> ids;
        const auto status = s->processor.Encode(absl::string_view(text, len), &ids);
        if (!status.ok())
            return sl_err_set(err, SL_DATA, "SentencePiece: %.512s", status.error_message());
        return fn(arg, ids.data(), ids.size());
    });
}

/* Who we are to Google Cloud Storage: a token, and the signer that adds it.
 *
 * The token comes from the service account's key that GOOGLE_APPLICATION_CREDENTIALS names, else
 * from the machine's metadata service (GCE_METADATA_HOST, or metadata.google.internal). Without
 * either, requests carry none, as public buckets allow. STORAGE_EMULATOR_HOST names another
 * service; then only a key is used, never the machine's own account. A token is asked for anew
 * SL_GCLOUD_EARLY_S before it expires. */
#ifndef SL_ARTIFACTS_GCLOUD_H
#define SL_ARTIFACTS_GCLOUD_H
#include "artifacts/ask.h"
#include "artifacts/watch.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_GCLOUD_TOKEN_MAX 4096
#define SL_GCLOUD_EARLY_S 120

struct sl_gcloud {
    char endpoint[512]; /* without a slash at its end */
    char token[SL_GCLOUD_TOKEN_MAX];
    int64_t expires_s;
    bool anonymous;
    const struct sl_watch *watch;
};

int sl_gcloud_init(struct sl_gcloud *g, const struct sl_watch *watch, struct sl_err *err);
void sl_gcloud_release(struct sl_gcloud *g); /* wipes the token; NULL-safe */
struct sl_signer sl_gcloud_signer(struct sl_gcloud *g);

#endif

/* Many small blobs in one answer: GET /api/v1/blobs?sha256=DIGEST,DIGEST,...
 *
 * The answer has, for each digest in the order asked for, the line "DIGEST BYTES\n" and then as many bytes; or the line
 * "DIGEST -\n" for one that must be asked for alone: it is not here (a bucket may have it), or has more than
 * SL_BLOBS_EACH_MAX bytes. Whoever reads checks the digests. */
#ifndef SL_SERVER_BLOB_BATCH_H
#define SL_SERVER_BLOB_BATCH_H
#include "artifacts/store.h"
#include "server/http.h"

/* Answers: 422 without a digest, with a wrong one, or with more than SL_BLOBS_AT_ONCE. */
void sl_blob_batch_reply(struct sl_http_req *req, struct sl_store *store);

#endif

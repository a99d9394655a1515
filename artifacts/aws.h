/* Who we are to AWS, and the signer of requests to its services.
 *
 * Keys come from, in this order: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN);
 * AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN; AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials,
 * profile AWS_PROFILE or `default`; the machine's metadata service (IMDSv2), unless
 * AWS_EC2_METADATA_DISABLED is true. The region: AWS_REGION, AWS_DEFAULT_REGION, AWS_CONFIG_FILE or
 * ~/.aws/config, the metadata service's where the keys come from there, else us-east-1.
 * AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL_STS and AWS_ENDPOINT_URL name another service.
 *
 * Keys that expire are looked up again SL_AWS_EARLY_S before they do. Secrets stand in no message.
 */
#ifndef SL_ARTIFACTS_AWS_H
#define SL_ARTIFACTS_AWS_H
#include "artifacts/ask.h"
#include "artifacts/watch.h"
#include "base/err.h"
#include <stdbool.h>
#include <stdint.h>

#define SL_AWS_KEY_MAX 256
#define SL_AWS_TOKEN_MAX 6144
#define SL_AWS_REGION_MAX 64
#define SL_AWS_EARLY_S 300

struct sl_aws {
    char id[SL_AWS_KEY_MAX], secret[SL_AWS_KEY_MAX], token[SL_AWS_TOKEN_MAX];
    char region[SL_AWS_REGION_MAX];
    int64_t expires_s; /* since 1970; 0: never */
    bool anonymous;    /* no keys anywhere: requests go unsigned, as public buckets allow */
    const struct sl_watch *watch;
};

/* SL_SPEC: half a pair of keys, an unreadable file; SL_DENIED, SL_RETRY, ... of STS. */
int sl_aws_init(struct sl_aws *aws, const struct sl_watch *watch, struct sl_err *err);
void sl_aws_release(struct sl_aws *aws); /* wipes the keys; NULL-safe */
/* A signer of S3 requests; aws must outlive it. */
struct sl_signer sl_aws_signer(struct sl_aws *aws);
/* The endpoint's origin for a service, or NULL: AWS's own. */
const char *sl_aws_endpoint(const char *service);

#endif

/* Where the server may send what others have written an address for: webhooks, MLflow. allow: --webhook-allow. */
#ifndef SL_SERVER_WEBHOOKS_GUARD_H
#define SL_SERVER_WEBHOOKS_GUARD_H
#include "base/err.h"
#include <stdbool.h>
#include <sys/socket.h>

/* SL_SPEC: not of the form "10.0.0.0/8", "fd00::/8", or an address. */
int sl_webhook_allow_check(const char *const *allow, int n, struct sl_err *err);
/* Whether a delivery may go to this address. */
bool sl_webhook_may_go(const struct sockaddr *to, const char *const *allow, int n);
/* SL_SPEC: no http or https URL, or one whose address is a number that may not be gone to. */
int sl_webhook_url_check(const char *url, const char *const *allow, int n, struct sl_err *err);

#endif

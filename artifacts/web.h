/* What the API client and transfers share of libcurl: options, origins, which failures pass,
 * pauses. */
#ifndef SL_ARTIFACTS_WEB_H
#define SL_ARTIFACTS_WEB_H
#include "base/err.h"
#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_WEB_CONNECT_S 10
#define SL_WEB_REDIRECTS_MAX 5
#define SL_WEB_PAUSE_MAX_US 8000000

/* A handle with the common options: http and https only, no signals, connect timeout, no redirects;
 * certificates by CURL_CA_BUNDLE, SSL_CERT_FILE or SSL_CERT_DIR where set, proxies by libcurl's own
 * variables (https_proxy, no_proxy, ...).
 * NULL when out of memory. The first call initialises libcurl. */
CURL *sl_web_new(struct sl_err *err);
/* Back to the common options: nothing that an earlier request pointed at is left. */
void sl_web_reset(CURL *curl);
/* http or https, with a host, without a user's name or password in it. SL_SPEC. */
int sl_web_check_url(const char *url, struct sl_err *err);
/* Takes users, passwords and queries, which may be credentials, out of every URL in a text that will be told: in place. */
void sl_web_redact(char *text);
/* Same scheme, host and port. */
bool sl_web_same_origin(const char *url, const char *other);
/* Sets url; loopback hosts and the metadata services of clouds go around any proxy. */
void sl_web_set_url(CURL *curl, const char *url);
/* "Authorization: Bearer TOKEN" in front of list; NULL when out of memory (list is freed). */
struct curl_slist *sl_web_authorize(struct curl_slist *list, const char *token);
/* No answer, or half of one, for a reason that may pass. */
bool sl_web_passing(CURLcode code);
/* 408, 429, 500, 502, 503, 504. */
bool sl_web_passing_status(long status);
/* The pause before try number `attempt` (1, 2, ...): doubled each time, with jitter, at most
 * SL_WEB_PAUSE_MAX_US. */
int64_t sl_web_pause_us(int attempt);

#endif

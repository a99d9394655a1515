#include "artifacts/web.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#define PAUSE_FIRST_US 200000

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_curl(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

void sl_web_reset(CURL *curl)
{
    curl_easy_reset(curl); /* keeps live connections */
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)SL_WEB_CONNECT_S);
    /* libcurl heeds the proxies' variables by itself, but not those of the certificates. */
    static const char *const files[] = {"SOFTLAUNCH_CA_FILE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"};
    const char *bundle = NULL, *folder = getenv("SSL_CERT_DIR");
    for (size_t i = 0; i < sizeof files / sizeof *files && (!bundle || !*bundle); i++)
        bundle = getenv(files[i]);
    if (bundle && *bundle)
        curl_easy_setopt(curl, CURLOPT_CAINFO, bundle);
    if (folder && *folder)
        curl_easy_setopt(curl, CURLOPT_CAPATH, folder);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "softlaunch/" SL_VERSION);
}

CURL *sl_web_new(struct sl_err *err)
{
    pthread_once(&once, init_curl);
    CURL *curl = curl_easy_init();
    if (curl)
        sl_web_reset(curl);
    else
        sl_err_set(err, SL_NOMEM, "out of memory");
    return curl;
}

/* One part of a URL, lower case; NULL when it has none or is no URL. The caller frees it with
 * curl_free. */
static char *url_part(const char *url, CURLUPart part)
{
    CURLU *u = curl_url();
    char *text = NULL;
    if (u && !curl_url_set(u, CURLUPART_URL, url, 0))
        curl_url_get(u, part, &text, CURLU_DEFAULT_PORT);
    curl_url_cleanup(u);
    return text;
}

int sl_web_check_url(const char *url, struct sl_err *err)
{
    bool ok = !strncasecmp(url, "http://", 7) || !strncasecmp(url, "https://", 8);
    char *host = ok ? url_part(url, CURLUPART_HOST) : NULL;
    char *user = ok ? url_part(url, CURLUPART_USER) : NULL;
    ok = host && *host && !user;
    curl_free(host);
    curl_free(user);
    if (ok)
        return 0;
    return sl_err_set(err, SL_SPEC, "`%.300s` is not a URL of the form http(s)://HOST[:PORT]/...%s",
                      url, user ? " without a user name" : "");
}

bool sl_web_same_origin(const char *url, const char *other)
{
    static const CURLUPart origin[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    for (size_t i = 0; i < sizeof origin / sizeof *origin; i++) {
        char *a = url_part(url, origin[i]), *b = url_part(other, origin[i]);
        bool same = a && b && strcasecmp(a, b) == 0;
        curl_free(a);
        curl_free(b);
        if (!same)
            return false;
    }
    return true;
}

void sl_web_set_url(CURL *curl, const char *url)
{
    char *host = url_part(url, CURLUPART_HOST);
    bool near = host && (!strcmp(host, "localhost") || !strncmp(host, "127.", 4) ||
                         !strcmp(host, "[::1]") || !strncmp(host, "169.254.", 8) ||
                         !strcmp(host, "metadata.google.internal"));
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, near ? "*" : NULL);
    curl_free(host);
}

struct curl_slist *sl_web_authorize(struct curl_slist *list, const char *token)
{
    static const char prefix[] = "Authorization: Bearer ";
    char *header = malloc(sizeof prefix + strlen(token));
    struct curl_slist *longer = NULL;
    if (header) {
        memcpy(header, prefix, sizeof prefix - 1);
        memcpy(header + sizeof prefix - 1, token, strlen(token) + 1);
        longer = curl_slist_append(list, header);
        free(header);
    }
    if (!longer)
        curl_slist_free_all(list);
    return longer;
}

/* Where the URL that p stands in ends: at a space, less what the sentence has put behind it. */
static char *url_end(char *p)
{
    char *end = p + strcspn(p, " \t\n\"`<>");
    while (end > p && strchr(":;,.)'", end[-1]))
        end--;
    return end;
}

void sl_web_redact(char *text)
{
    static const char dots[] = "...";
    char *p = text;
    while ((p = strstr(p, "://"))) {
        char *host = p + 3, *end = url_end(host), *at = host;
        for (char *c = host; c < end && !strchr("/?#", *c); c++)
            if (*c == '@')
                at = c + 1;
        memmove(host, at, strlen(at) + 1);
        end -= at - host;
        char *query = host + strcspn(host, "?");
        if (query < end) {
            size_t keep = strnlen(dots, (size_t)(end - query - 1));
            memcpy(query + 1, dots, keep);
            memmove(query + 1 + keep, end, strlen(end) + 1);
            end = query + 1 + keep;
        }
        p = end;
    }
}

bool sl_web_passing(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_WEIRD_SERVER_REPLY:
        return true;
    default:
        return false;
    }
}

bool sl_web_passing_status(long status)
{
    return status == 408 || status == 429 || status == 500 || (status >= 502 && status <= 504);
}

int64_t sl_web_pause_us(int attempt)
{
    unsigned noise = 0;
    int64_t pause = PAUSE_FIRST_US;
    for (int i = 1; i < attempt && pause < SL_WEB_PAUSE_MAX_US; i++)
        pause *= 2;
    if (pause > SL_WEB_PAUSE_MAX_US)
        pause = SL_WEB_PAUSE_MAX_US;
    if (getrandom(&noise, sizeof noise, 0) != sizeof noise)
        noise = (unsigned)attempt * 2654435761u;
    /* half to all of it, so that many clients do not come back at once */
    return pause / 2 + (int64_t)(noise % 1000) * (pause / 2) / 1000;
}

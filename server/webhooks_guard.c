/* Where a webhook may not go: the operator's own network, which its writer may not be able to reach otherwise. */
#include "server/webhooks.h"
#include "server/webhooks_guard.h"
#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

struct net {
    int family;
    uint8_t bytes[16];
    int bits;
};

/* Special-purpose networks of RFC 6890 and its successors that no public receiver has. */
static const char *const private_nets[] = {
    "0.0.0.0/8",     "10.0.0.0/8",      "100.64.0.0/10", "127.0.0.0/8",   "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24",    "192.0.2.0/24",  "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",  "240.0.0.0/4",   "::/8",
    "64:ff9b:1::/48", "100::/64",       "2001::/23",     "2001:db8::/32", "2002::/16",
    "fc00::/7",      "fe80::/10",       "fec0::/10",     "ff00::/8"};

static bool parse_net(const char *text, struct net *ret_net)
{
    char address[64];
    const char *slash = strchr(text, '/');
    size_t len = slash ? (size_t)(slash - text) : strlen(text);
    char *end = NULL;
    long bits;

    if (!len || len >= sizeof address)
        return false;
    memcpy(address, text, len);
    address[len] = 0;
    ret_net->family = strchr(address, ':') ? AF_INET6 : AF_INET;
    if (inet_pton(ret_net->family, address, ret_net->bytes) != 1)
        return false;
    bits = ret_net->family == AF_INET6 ? 128 : 32;
    ret_net->bits = (int)bits;
    if (!slash)
        return true;
    bits = strtol(slash + 1, &end, 10);
    if (!slash[1] || *end || bits < 0 || bits > ret_net->bits)
        return false;
    ret_net->bits = (int)bits;
    return true;
}

static bool within(const struct net *net, int family, const uint8_t *bytes)
{
    int whole = net->bits / 8, rest = net->bits % 8;

    return net->family == family && !memcmp(net->bytes, bytes, (size_t)whole) &&
           (!rest || !((net->bytes[whole] ^ bytes[whole]) >> (8 - rest)));
}

static bool in_any(const char *const *nets, int n, int family, const uint8_t *bytes)
{
    struct net net;

    for (int i = 0; i < n; i++)
        if (parse_net(nets[i], &net) && within(&net, family, bytes))
            return true;
    return false;
}

int sl_webhook_allow_check(const char *const *allow, int n, struct sl_err *err)
{
    struct net net;

    for (int i = 0; i < n; i++)
        if (!parse_net(allow[i], &net))
            return sl_err_set(err, SL_SPEC,
                              "--webhook-allow %s: expected a network or an address, such as 10.1.0.0/16",
                              allow[i]);
    return 0;
}

bool sl_webhook_may_go(const struct sockaddr *to, const char *const *allow, int n)
{
    /* IPv4 within IPv6: mapped, and as a NAT64 gateway would translate it. */
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static const uint8_t nat64[12] = {0, 0x64, 0xff, 0x9b};
    int family = to->sa_family;
    uint8_t bytes[16];

    if (family == AF_INET) {
        memcpy(bytes, &((const struct sockaddr_in *)(const void *)to)->sin_addr, 4);
    } else if (family == AF_INET6) {
        memcpy(bytes, &((const struct sockaddr_in6 *)(const void *)to)->sin6_addr, 16);
        if (!memcmp(bytes, mapped, 12) || !memcmp(bytes, nat64, 12)) {
            family = AF_INET;
            memmove(bytes, bytes + 12, 4);
        }
    } else {
        return false; /* a unix socket, say */
    }
    return in_any(allow, n, family, bytes) ||
           !in_any(private_nets, (int)(sizeof private_nets / sizeof *private_nets), family, bytes);
}

/* The host when it is an address written as numbers, as curl has normalised it ("0x7f.1" is 127.0.0.1). */
static bool numeric(const char *host, struct sockaddr_storage *ret_to)
{
    struct net net;
    char bare[64];
    size_t len = strlen(host);

    if (len > 2 && *host == '[') {
        host++;
        len -= 2;
    }
    if (len >= sizeof bare)
        return false;
    memcpy(bare, host, len);
    bare[len] = 0;
    bare[strcspn(bare, "%/")] = 0; /* a zone */
    if (!parse_net(bare, &net))
        return false;
    memset(ret_to, 0, sizeof *ret_to);
    ret_to->ss_family = (sa_family_t)net.family;
    if (net.family == AF_INET)
        memcpy(&((struct sockaddr_in *)(void *)ret_to)->sin_addr, net.bytes, 4);
    else
        memcpy(&((struct sockaddr_in6 *)(void *)ret_to)->sin6_addr, net.bytes, 16);
    return true;
}

int sl_webhook_url_check(const char *url, const char *const *allow, int n, struct sl_err *err)
{
    char *scheme = NULL, *host = NULL, *user = NULL;
    struct sockaddr_storage to;
    CURLU *u = curl_url();
    int rc = 0;

    if (!u)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    if (strlen(url) > SL_WEBHOOK_URL_MAX || curl_url_set(u, CURLUPART_URL, url, 0) ||
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) || curl_url_get(u, CURLUPART_HOST, &host, 0) ||
        (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
        rc = sl_err_set(err, SL_SPEC, "expected an http or https URL of at most %d bytes", SL_WEBHOOK_URL_MAX);
    else if (!curl_url_get(u, CURLUPART_USER, &user, 0))
        rc = sl_err_set(err, SL_SPEC, "a name or password in the URL is not sent: receivers check the signature");
    else if (numeric(host, &to) && !sl_webhook_may_go((const struct sockaddr *)&to, allow, n))
        rc = sl_err_set(err, SL_SPEC,
                        "%s is a private address: start the server with --webhook-allow for receivers in its own "
                        "network",
                        host);
    curl_free(scheme);
    curl_free(host);
    curl_free(user);
    curl_url_cleanup(u);
    return rc;
}

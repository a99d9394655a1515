/* Where a request comes from: its address, whether a proxy that we trust stands there, and how
 * often that place has failed to sign in. */
#include "base/clock.h"
#include "server/http_priv.h"
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

/* An IPv4 address is kept as the IPv6 one that maps it. */
static bool parse_ip(const char *text, unsigned char ret_ip[16])
{
    if (inet_pton(AF_INET6, text, ret_ip) == 1)
        return true;
    memset(ret_ip, 0, 10);
    memset(ret_ip + 10, 0xff, 2);
    return inet_pton(AF_INET, text, ret_ip + 12) == 1;
}

static bool is_v4(const unsigned char ip[16])
{
    static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
    return !memcmp(ip, mapped, sizeof mapped);
}

int sl_http_trust(struct sl_http_guard *guard, const char *text, struct sl_err *err)
{
    char address[64];
    size_t len = strcspn(text, "/");
    struct sl_http_net *net = &guard->trusted[guard->n_trusted];
    if (guard->n_trusted == SL_HTTP_TRUSTED_MAX)
        return sl_err_set(err, SL_SPEC, "--trusted-proxy: at most %d of them", SL_HTTP_TRUSTED_MAX);
    snprintf(address, sizeof address, "%.*s", (int)len, text);
    char *end = NULL;
    bool ok = len < sizeof address && parse_ip(address, net->ip);
    long most = ok && is_v4(net->ip) && !strchr(address, ':') ? 32 : 128;
    long bits = text[len] ? strtol(text + len + 1, &end, 10) : most;
    if (!ok || (end && (*end || end == text + len + 1)) || bits < 0 || bits > most)
        return sl_err_set(err, SL_SPEC,
                          "--trusted-proxy %.60s: expected an address or a network, such as "
                          "10.0.0.7 or 10.1.0.0/16",
                          text);
    net->bits = (int)(bits + 128 - most);
    guard->n_trusted++;
    return 0;
}

static bool inside(const unsigned char ip[16], const struct sl_http_net *net)
{
    int whole = net->bits / 8, rest = net->bits % 8;
    return !memcmp(ip, net->ip, (size_t)whole) &&
           (!rest || !((ip[whole] ^ net->ip[whole]) & (0xff << (8 - rest) & 0xff)));
}

/* The last address that X-Forwarded-For names is the one that the proxy saw; what stands before it
 * came from the client. */
static bool forwarded(const struct sl_http_req *req, unsigned char ret_ip[16])
{
    char last[64];
    const char *text = sl_http_header(req, "X-Forwarded-For");
    if (!text)
        return false;
    const char *comma = strrchr(text, ',');
    text = comma ? comma + 1 : text;
    text += strspn(text, " \t");
    snprintf(last, sizeof last, "%.*s", (int)strcspn(text, " \t"), text);
    return parse_ip(last, ret_ip);
}

void sl_http_find_peer(struct sl_http_req *req)
{
    const struct sl_http_guard *guard = sl_http_guard(req->http);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(req->conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *sa = info ? info->client_addr : NULL;
    struct sl_http_peer *peer = &req->peer;

    memset(peer, 0, sizeof *peer);
    if (sa && sa->sa_family == AF_UNIX) {
        peer->trusted = true;
        snprintf(peer->text, sizeof peer->text, "unix");
    } else if (sa && sa->sa_family == AF_INET6) {
        memcpy(peer->ip, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
    } else if (sa && sa->sa_family == AF_INET) {
        memset(peer->ip + 10, 0xff, 2);
        memcpy(peer->ip + 12, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
    }
    for (int i = 0; i < guard->n_trusted && !peer->trusted; i++)
        peer->trusted = inside(peer->ip, &guard->trusted[i]);
    if (peer->trusted && forwarded(req, peer->ip))
        peer->text[0] = 0;
    if (!peer->text[0] && is_v4(peer->ip))
        inet_ntop(AF_INET, peer->ip + 12, peer->text, sizeof peer->text);
    else if (!peer->text[0])
        inet_ntop(AF_INET6, peer->ip, peer->text, sizeof peer->text);
}

/* ---- failed attempts ------------------------------------------------------------------------- */

/* One household or machine: an IPv4 address, an IPv6 /64. A place that shares its slot with another
 * takes it over, so that the table has a fixed size. */
static struct sl_http_failures *slot_of(struct sl_http_failures *slots,
                                        const struct sl_http_peer *peer)
{
    size_t len = is_v4(peer->ip) ? 16 : 8;
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ peer->ip[i]) * 16777619u;
    struct sl_http_failures *slot = &slots[hash % SL_HTTP_FAILURE_SLOTS];
    if (memcmp(slot->ip, peer->ip, len) != 0) {
        memset(slot, 0, sizeof *slot);
        memcpy(slot->ip, peer->ip, len);
    }
    int64_t now_us = sl_boot_us(), passed_us = now_us - slot->at_us;
    double forgiven = (double)passed_us / (SL_HTTP_FAILURE_FORGET_S * 1e6);
    slot->count = slot->count > forgiven ? slot->count - forgiven : 0;
    slot->at_us = now_us;
    return slot;
}

bool sl_http_may_try(struct sl_http_req *req, enum sl_http_attempt what)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    pthread_mutex_lock(&guard->failing);
    bool ok = slot_of(guard->failures[what], &req->peer)->count <= SL_HTTP_FAILURES_MAX - 1;
    pthread_mutex_unlock(&guard->failing);
    return ok;
}

bool sl_http_failed(struct sl_http_req *req, enum sl_http_attempt what)
{
    struct sl_http_guard *guard = sl_http_guard(req->http);
    pthread_mutex_lock(&guard->failing);
    struct sl_http_failures *slot = slot_of(guard->failures[what], &req->peer);
    bool under = slot->count <= SL_HTTP_FAILURES_MAX - 1;
    if (under)
        slot->count++;
    pthread_mutex_unlock(&guard->failing);
    return under;
}

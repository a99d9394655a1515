#include "queue/redis.h"
#include <ctype.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define REDIS_PORT 6379
#define SENTINEL_PORT 26379
#define NUMBER_DIGITS_MAX 5

/* SL_SPEC without the text, which may hold a password. */
static int bad(struct sl_err *err, const char *what)
{
    return sl_err_set(err, SL_SPEC, "Redis URL: %s", what);
}

static int percent_decode(const char *text, size_t len, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '%' && i + 2 < len && isxdigit((unsigned char)text[i + 1]) &&
            isxdigit((unsigned char)text[i + 2])) {
            char hex[3] = {text[i + 1], text[i + 2], 0};
            c = (char)strtol(hex, NULL, 16);
            i += 2;
        }
        if (n + 1 >= size || !c)
            return -1;
        out[n++] = c;
    }
    out[n] = 0;
    return 0;
}

static int parse_number(const char *text, size_t len, int most, int *ret)
{
    int v = 0;

    if (!len || len > NUMBER_DIGITS_MAX)
        return -1;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)text[i]))
            return -1;
        v = v * 10 + (text[i] - '0');
    }
    if (v > most)
        return -1;
    *ret = v;
    return 0;
}

static int parse_host(const char *text, size_t len, int default_port, struct sl_redis_host *h,
                      struct sl_err *err)
{
    const char *end = text + len, *name_end = end, *port = NULL;

    if (len && *text == '[') {
        name_end = memchr(text, ']', len);
        if (!name_end)
            return bad(err, "no ] behind the IPv6 address");
        text++;
        if (name_end + 1 < end && name_end[1] == ':')
            port = name_end + 2;
    } else if (len && (port = memchr(text, ':', len)) != NULL) {
        name_end = port++;
    }
    h->port = default_port;
    if (name_end == text || percent_decode(text, (size_t)(name_end - text), h->name, sizeof h->name))
        return bad(err, "no host name in it");
    if (port && (parse_number(port, (size_t)(end - port), 65535, &h->port) || h->port == 0))
        return bad(err, "the port is not a number from 1 to 65535");
    return 0;
}

static int parse_hosts(const char *text, const char *end, struct sl_redis_url *u, struct sl_err *err)
{
    for (;;) {
        const char *comma = memchr(text, ',', (size_t)(end - text));
        const char *stop = comma ? comma : end;
        int rc;

        if (u->n_hosts == SL_REDIS_HOSTS_MAX)
            return bad(err, "more hosts than we keep (8)");
        rc = parse_host(text, (size_t)(stop - text), u->primary[0] ? SENTINEL_PORT : REDIS_PORT,
                        &u->hosts[u->n_hosts++], err);
        if (rc || !comma)
            return rc;
        text = comma + 1;
    }
}

/* Behind the hosts: DB, or for Sentinel NAME or NAME/DB. */
static int parse_place(const char *text, const char *end, bool sentinel, struct sl_redis_url *u,
                       struct sl_err *err)
{
    if (sentinel) {
        const char *slash = memchr(text, '/', (size_t)(end - text));
        const char *stop = slash ? slash : end;
        if (stop == text ||
            percent_decode(text, (size_t)(stop - text), u->primary, sizeof u->primary))
            return bad(err, "behind the Sentinels must follow /NAME, as they call the primary");
        text = slash ? slash + 1 : end;
    }
    if (text != end && parse_number(text, (size_t)(end - text), 65535, &u->db))
        return bad(err, "behind the host only /DB (a number) may follow");
    return 0;
}

static int parse_query(const char *text, struct sl_redis_url *u, struct sl_err *err)
{
    const struct {
        const char *key;
        char *value;
        size_t size;
        bool tls, sentinel;
    } keys[] = {
        {"sentinel_user", u->sentinel_user, sizeof u->sentinel_user, false, true},
        {"sentinel_password", u->sentinel_password, sizeof u->sentinel_password, false, true},
        {"cacert", u->ca_file, sizeof u->ca_file, true, false},
        {"cert", u->cert_file, sizeof u->cert_file, true, false},
        {"key", u->key_file, sizeof u->key_file, true, false},
        {"sni", u->server_name, sizeof u->server_name, true, false},
    };

    while (*text) {
        size_t len = strcspn(text, "&"), name = strcspn(text, "=&"), i;
        const char *value = text + name + (name < len);
        size_t value_len = (size_t)(text + len - value);

        for (i = 0; i < sizeof keys / sizeof *keys; i++)
            if (strlen(keys[i].key) == name && !memcmp(keys[i].key, text, name))
                break;
        if (i == sizeof keys / sizeof *keys) {
            if (name != 2 || memcmp(text, "db", 2) != 0 ||
                parse_number(value, value_len, 65535, &u->db))
                return bad(err, "behind the ? may stand db=N, cacert, cert, key, sni, sentinel_user, "
                                "sentinel_password");
        } else if ((keys[i].tls && !u->tls) || (keys[i].sentinel && !u->primary[0])) {
            return sl_err_set(err, SL_SPEC, "Redis URL: %s= is for %s only", keys[i].key,
                              keys[i].tls ? "rediss://" : "redis+sentinel://");
        } else if (percent_decode(value, value_len, keys[i].value, keys[i].size)) {
            return sl_err_set(err, SL_SPEC, "Redis URL: %s= is too long", keys[i].key);
        }
        text += len + (text[len] == '&');
    }
    if (!u->cert_file[0] != !u->key_file[0])
        return bad(err, "cert= and key= go together");
    return 0;
}

int sl_redis_url_parse(const char *text, struct sl_redis_url *ret_url, struct sl_err *err)
{
    static const struct {
        const char *prefix;
        bool tls, sentinel, unix_socket;
    } schemes[] = {
        {"unix://", false, false, true},
        {"redis://", false, false, false},
        {"rediss://", true, false, false},
        {"redis+sentinel://", false, true, false},
        {"rediss+sentinel://", true, true, false},
    };
    struct sl_redis_url u;
    size_t i;
    int rc = 0;

    memset(&u, 0, sizeof u);
    if (!text || !*text)
        return sl_err_set(err, SL_SPEC, "no Redis URL: give redis://host:port or unix:///path");
    for (i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (!strncmp(text, schemes[i].prefix, strlen(schemes[i].prefix)))
            break;
    if (i == sizeof schemes / sizeof *schemes)
        return bad(err, "it must begin with redis://, rediss://, redis+sentinel://, "
                        "rediss+sentinel:// or unix://");
    u.tls = schemes[i].tls;

    const char *rest = text + strlen(schemes[i].prefix);
    const char *end = rest + strcspn(rest, "?"), *query = *end ? end + 1 : end;
    const char *slash = memchr(rest, '/', (size_t)(end - rest));
    const char *host_end = slash ? slash : end;
    const char *at = memrchr(rest, '@', (size_t)(host_end - rest));

    if (at) {
        const char *colon = memchr(rest, ':', (size_t)(at - rest));
        if (!colon || percent_decode(rest, (size_t)(colon - rest), u.user, sizeof u.user) ||
            percent_decode(colon + 1, (size_t)(at - colon - 1), u.password, sizeof u.password))
            return bad(err, "expected user:password before the @");
        rest = at + 1;
    }
    if (schemes[i].unix_socket) {
        if (rest != slash || percent_decode(rest, (size_t)(end - rest), u.path, sizeof u.path))
            return sl_err_set(err, SL_SPEC,
                              "Redis URL: unix:// needs an absolute path of at most %zu bytes",
                              sizeof u.path - 1);
    } else {
        rc = parse_place(slash ? slash + 1 : end, end, schemes[i].sentinel, &u, err);
        if (!rc)
            rc = parse_hosts(rest, host_end, &u, err);
    }
    if (!rc)
        rc = parse_query(query, &u, err);
    if (!rc)
        *ret_url = u;
    return rc;
}

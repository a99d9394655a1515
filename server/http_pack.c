/* What saves a JSON answer its way: an ETag, with which a client that has it already gets 304, and gzip. */
#include "server/http_priv.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>

#define LEVEL 4
#define GZIP_FORM (15 + 16) /* zlib's largest window, and a gzip header around it */

/* A member of a list as "deflate, gzip;q=0.5"; one of q=0 is refused. */
static bool accepts(const char *list, const char *coding)
{
    size_t len = strlen(coding);

    while (list && *list) {
        size_t all = strcspn(list, ","), space = strspn(list, " \t");
        const char *word = list + space, *end = list + all;
        if (word + len <= end && !strncasecmp(word, coding, len) &&
            (word + len == end || strchr("; \t", word[len]))) {
            const char *q = memmem(word, (size_t)(end - word), "q=", 2);
            return !q || strtod(q + 2, NULL) > 0;
        }
        list = *end ? end + 1 : NULL;
    }
    return false;
}

bool sl_http_has_it(struct sl_http_req *req, const char *text, size_t len)
{
    const char *known = sl_http_header(req, "If-None-Match");
    char digest[SL_SHA256_HEX + 1], etag[SL_SHA256_HEX + 5];

    if (sl_sha256_data(text, len, digest, NULL))
        return false;
    /* Weak: packed or not, it is the same answer. */
    snprintf(etag, sizeof etag, "W/\"%s\"", digest);
    sl_http_set_header(req, "ETag", etag);
    return known && (strcmp(known, "*") == 0 || strstr(known, etag + 2));
}

void sl_http_gzip(struct sl_http_req *req, char **text, size_t *len)
{
    z_stream z = {0};

    if (*len < SL_HTTP_GZIP_MIN || !accepts(sl_http_header(req, "Accept-Encoding"), "gzip") ||
        deflateInit2(&z, LEVEL, Z_DEFLATED, GZIP_FORM, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return;
    size_t room = deflateBound(&z, *len);
    char *packed = malloc(room);
    z.next_in = (unsigned char *)*text;
    z.avail_in = (unsigned)*len;
    z.next_out = (unsigned char *)packed;
    z.avail_out = (unsigned)room;
    bool whole = packed && deflate(&z, Z_FINISH) == Z_STREAM_END;
    deflateEnd(&z);
    if (!whole) { /* it goes as it is */
        free(packed);
        return;
    }
    free(*text);
    *text = packed;
    *len = z.total_out;
    sl_http_set_header(req, "Content-Encoding", "gzip");
}

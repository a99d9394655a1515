#include "queue/scripts.h"
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EMBEDDED(name)                                                                             \
    extern const unsigned char sl_embed_queue_scripts_##name##_lua[];                              \
    extern const unsigned long sl_embed_queue_scripts_##name##_lua_len;
#define EACH_SCRIPT(X)                                                                             \
    X(ENQUEUE, enqueue)                                                                            \
    X(CLAIM, claim)                                                                                \
    X(RENEW, renew) X(APPEND, append) X(CHECKPOINT, checkpoint) X(RELEASE, release) X(FAIL, fail)  \
        X(FINISH, finish) X(ACK, ack) X(CANCEL, cancel) X(MOVE, move) X(REAP, reap)                \
            X(HEARTBEAT, heartbeat) X(AGENTS, agents) X(SET_AGENT, set_agent) X(NAMES, names)      \
                X(SET_NAMES, set_names) X(LIST, list) X(SHOW, show)                \
                    X(CHANGES, changes) X(WAITING, waiting) X(EVENTS, events)                  \
                    X(ENDED, ended) X(FORGET, forget) X(NUMBER, number) X(REFUND, refund) X(SYNC, sync) X(TRIM, trim)

EMBEDDED(common)
EMBEDDED(line)
#define DECLARE(id, name) EMBEDDED(name)
EACH_SCRIPT(DECLARE)

static struct sl_script scripts[SL_SCRIPT_COUNT];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void sha1_hex(const char *text, size_t len, char ret_hex[41])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    ret_hex[0] = 0;
    if (EVP_Digest(text, len, digest, &n, EVP_sha1(), NULL) != 1)
        return; /* no SHA-1 here: an unknown digest, so Redis gets the whole text each time */
    for (unsigned i = 0; i < n && i < 20; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
}

/* ---- heads
 * -------------------------------------------------------------------------------------------------
 * Each call of a script runs its head, and making functions that are not called took a good part of a
 * short script's time: a script gets only the parts of the heads that it uses. A part begins with
 * "local" at a line's beginning and is known by the names that it declares; it uses what stands before it.
 * What nobody but gates() uses is put into gates(), which most calls never come to. */

#define PARTS_MAX 100
#define LATE "local function gates()\n  if made_gates then return made_gates end\n"

static bool is_word(char c)
{
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool has_word(const char *text, const char *word, size_t len)
{
    for (const char *p = text; (p = memmem(p, strlen(p), word, len)); p++)
        if ((p == text || !is_word(p[-1])) && !is_word(p[len]))
            return true;
    return false;
}

/* Whether text uses a name that part declares: "local function f", "local a, b = ". */
static bool uses(const char *text, const char *part)
{
    const char *p = part + strlen("local ");

    if (!strncmp(p, "function ", 9))
        p += 9;
    for (;;) {
        size_t len = 0;
        while (is_word(p[len]))
            len++;
        if (len && has_word(text, p, len))
            return true;
        if (p[len] != ',')
            return false;
        p += len + 1 + strspn(p + len + 1, " ");
    }
}

/* Comments name things that they do not use. No string of ours holds "--". */
static char *without_comments(const unsigned char *text, size_t len)
{
    char *s = strndup((const char *)text, len), *to = s;

    for (const char *p = s; p && *p;) {
        if (p[0] == '-' && p[1] == '-')
            p += strcspn(p, "\n");
        else
            *to++ = *p++;
    }
    if (s)
        *to = 0;
    return s;
}

/* Splits head, in place, into parts behind the n that there are; their number by now. What comes before the first is
 * dropped. */
static size_t split(char *head, const char **parts, size_t n)
{
    for (char *p = head; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (!strncmp(p, "local ", 6) && n < PARTS_MAX) {
            if (p > head)
                p[-1] = 0; /* the line's end before it is put back when it is written */
            parts[n++] = p;
        }
    return n;
}

/* Puts what text uses of the heads before it. NULL when out of memory. */
static char *with_heads(const char *text)
{
    const struct {
        const unsigned char *text;
        size_t len;
    } heads[] = {{sl_embed_queue_scripts_common_lua, sl_embed_queue_scripts_common_lua_len},
                 {sl_embed_queue_scripts_line_lua, sl_embed_queue_scripts_line_lua_len}};
    const char *parts[PARTS_MAX];
    bool used[PARTS_MAX] = {false}, late[PARTS_MAX] = {false};
    char *head[2], *whole = NULL;
    size_t n = 0, len;
    FILE *f;

    for (size_t i = 0; i < 2; i++) {
        head[i] = without_comments(heads[i].text, heads[i].len);
        n = split(head[i], parts, n);
    }
    for (size_t i = n; i--;) {
        used[i] = uses(text, parts[i]);
        for (size_t k = i + 1; k < n; k++) {
            const bool is_late = late[k] || (!strncmp(parts[k], LATE, strlen(LATE)) && !uses(LATE, parts[i]));
            if ((used[k] || late[k]) && uses(parts[k], parts[i]))
                *(is_late ? &late[i] : &used[i]) = true;
        }
        late[i] = late[i] && !used[i];
    }
    f = head[0] && head[1] ? open_memstream(&whole, &len) : NULL;
    for (size_t i = 0; f && i < n; i++) {
        const char *rest = parts[i];
        if (!used[i])
            continue;
        if (!strncmp(rest, LATE, strlen(LATE))) {
            fputs(LATE, f);
            rest += strlen(LATE);
            for (size_t k = 0; k < i; k++)
                if (late[k])
                    fprintf(f, "%s\n", parts[k]);
        }
        fprintf(f, "%s\n", rest);
    }
    if (f) {
        fputs(text, f);
        if (fclose(f)) {
            free(whole);
            whole = NULL;
        }
    }
    free(head[0]);
    free(head[1]);
    return whole;
}

/* A first line "#!lua ..." must stay first, so the heads go behind it. */
static void make(struct sl_script *s, const char *name, const unsigned char *text, size_t len)
{
    size_t first = 0;
    char *script, *body, *whole;

    if (len > 2 && text[0] == '#' && text[1] == '!') {
        const unsigned char *end = memchr(text, '\n', len);
        first = end ? (size_t)(end - text) + 1 : len;
    }
    script = without_comments(text + first, len - first);
    body = script ? with_heads(script) : NULL;
    free(script);
    if (!body)
        return;
    whole = malloc(first + strlen(body) + 1);
    if (whole) {
        memcpy(whole, text, first);
        memcpy(whole + first, body, strlen(body) + 1);
        s->name = name;
        s->len = first + strlen(body);
        sha1_hex(whole, s->len, s->sha1);
        s->text = whole;
    }
    free(body);
}

static void make_all(void)
{
#define MAKE(id, name)                                                                             \
    make(&scripts[SL_SCRIPT_##id], #name, sl_embed_queue_scripts_##name##_lua,                     \
         sl_embed_queue_scripts_##name##_lua_len);
    EACH_SCRIPT(MAKE)
}

const struct sl_script *sl_script_get(enum sl_script_id id)
{
    pthread_once(&once, make_all);
    return scripts[id].text ? &scripts[id] : NULL;
}

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
                X(SET_NAMES, set_names) X(LIST, list) X(SHOW, show) X(EVENTS, events)              \
                    X(ENDED, ended) X(FORGET, forget) X(NUMBER, number) X(SYNC, sync) X(TRIM, trim)

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

/* A first line "#!lua ..." must stay first, so the two heads go behind it. */
static void make(struct sl_script *s, const char *name, const unsigned char *text, size_t len)
{
    const size_t common_len = sl_embed_queue_scripts_common_lua_len;
    const size_t head_len = common_len + sl_embed_queue_scripts_line_lua_len;
    size_t first = 0;
    char *whole = malloc(head_len + len + 1);

    if (!whole)
        return;
    if (len > 2 && text[0] == '#' && text[1] == '!') {
        const unsigned char *end = memchr(text, '\n', len);
        first = end ? (size_t)(end - text) + 1 : len;
    }
    memcpy(whole, text, first);
    memcpy(whole + first, sl_embed_queue_scripts_common_lua, common_len);
    memcpy(whole + first + common_len, sl_embed_queue_scripts_line_lua, head_len - common_len);
    memcpy(whole + first + head_len, text + first, len - first);
    whole[head_len + len] = 0;
    s->name = name;
    s->len = head_len + len;
    sha1_hex(whole, s->len, s->sha1);
    s->text = whole;
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

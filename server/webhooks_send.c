/* Delivers what is due: one thread, curl's multi interface. */
#include "base/json.h"
#include "base/log.h"
#include "server/webhooks_priv.h"
#include <curl/curl.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECRET_PREFIX "whsec_"
#define SECRET_BYTES_MIN 16
#define SECRET_BYTES_MAX 64
#define SECRET_BYTES_MADE 24
#define IDLE_MS 60000         /* looks so often by itself */
#define TROUBLE_MS 5000       /* after an error of the database */
#define FORGET_MS INT64_C(3600000)

struct sending {
    struct sl_webhooks *w;
    CURL *curl; /* NULL: a free place */
    struct curl_slist *headers;
    char *body;
    char id[SL_ID_HEX + 1], hook[SL_WEBHOOK_NAME_MAX + 1], error[CURL_ERROR_SIZE];
    char refused[INET6_ADDRSTRLEN]; /* the address that it may not go to */
    size_t answer_bytes;
    int64_t tries, created_ms;
};

struct sl_webhook_sender {
    CURLM *multi;
    pthread_t thread;
    atomic_bool ending;
    int64_t forget_ms;
    struct sending at[SL_WEBHOOK_AT_ONCE];
};

/* ---- signing --------------------------------------------------------------------------------- */

/* Its bytes, or -1. */
static int secret_bytes(const char *secret, unsigned char ret_bytes[128])
{
    size_t prefix = strlen(SECRET_PREFIX), len = strlen(secret);
    int n;

    if (strncmp(secret, SECRET_PREFIX, prefix) != 0 || len - prefix > 128 || (len - prefix) % 4)
        return -1;
    n = EVP_DecodeBlock(ret_bytes, (const unsigned char *)secret + prefix, (int)(len - prefix));
    for (size_t end = len; n > 0 && end > prefix && secret[end - 1] == '='; end--)
        n--; /* it counts the padding */
    return n < SECRET_BYTES_MIN || n > SECRET_BYTES_MAX ? -1 : n;
}

bool sl_webhook_secret_valid(const char *secret)
{
    unsigned char bytes[128];

    return secret_bytes(secret, bytes) > 0;
}

int sl_webhook_secret(char ret_secret[128], struct sl_err *err)
{
    unsigned char bytes[SECRET_BYTES_MADE];

    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return sl_err_set(err, SL_IO, "no random bytes for a secret");
    memcpy(ret_secret, SECRET_PREFIX, sizeof SECRET_PREFIX);
    EVP_EncodeBlock((unsigned char *)ret_secret + strlen(SECRET_PREFIX), bytes, sizeof bytes);
    return 0;
}

/* Header lines as standardwebhooks.com has them. */
static int sign(struct sending *s, const char *secret)
{
    unsigned char key[128], mac[EVP_MAX_MD_SIZE];
    char text[64 + 2 * EVP_MAX_MD_SIZE], base64[2 * EVP_MAX_MD_SIZE];
    unsigned mac_len = 0;
    int n = secret_bytes(secret, key);
    long long now_s = (long long)(sl_now_us() / 1000000);
    struct sl_buf signed_text;
    struct curl_slist *list;

    sl_buf_init(&signed_text, 2 * SL_HTTP_JSON_MAX);
    if (n < 0 || sl_buf_addf(&signed_text, "%s.%lld.%s", s->id, now_s, s->body) ||
        !HMAC(EVP_sha256(), key, n, (const unsigned char *)signed_text.p, signed_text.len, mac, &mac_len)) {
        sl_buf_release(&signed_text);
        return SL_NOMEM;
    }
    sl_buf_release(&signed_text);
    EVP_EncodeBlock((unsigned char *)base64, mac, (int)mac_len);
    list = curl_slist_append(NULL, "Content-Type: application/json");
    snprintf(text, sizeof text, "webhook-id: %s", s->id);
    s->headers = list;
    list = list ? curl_slist_append(list, text) : NULL;
    snprintf(text, sizeof text, "webhook-timestamp: %lld", now_s);
    list = list ? curl_slist_append(list, text) : NULL;
    snprintf(text, sizeof text, "webhook-signature: v1,%s", base64);
    list = list ? curl_slist_append(list, text) : NULL;
    list = list ? curl_slist_append(list, "Expect:") : NULL; /* no waiting for a 100 */
    return list ? 0 : SL_NOMEM;
}

/* ---- one delivery ---------------------------------------------------------------------------- */

/* The name has been looked up: the last moment to say no, and the one that a second look-up cannot turn around. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct sending *s = arg;
    const struct sl_serve_config *config = s->w->server->config;

    (void)purpose;
    if (sl_webhook_may_go(&address->addr, config->webhook_allow, config->n_webhook_allow))
        return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    getnameinfo(&address->addr, address->addrlen, s->refused, sizeof s->refused, NULL, 0, NI_NUMERICHOST);
    return CURL_SOCKET_BAD;
}

/* The answer's body is read to a limit and not kept. */
static size_t take_answer(char *data, size_t size, size_t n, void *arg)
{
    struct sending *s = arg;

    (void)data;
    s->answer_bytes += size * n;
    return s->answer_bytes > SL_WEBHOOK_ANSWER_MAX ? 0 : size * n;
}

static void end_sending(struct sl_webhook_sender *sender, struct sending *s)
{
    if (s->curl) {
        curl_multi_remove_handle(sender->multi, s->curl);
        curl_easy_cleanup(s->curl);
    }
    curl_slist_free_all(s->headers);
    free(s->body);
    memset(s, 0, sizeof *s);
}

static int begin_sending(struct sl_webhook_sender *sender, struct sending *s, const json_t *hook)
{
    CURL *c = s->curl = curl_easy_init();
    CURLcode rc = CURLE_OK;

    if (!c || !s->body || sign(s, sl_json_str(hook, "secret", "")))
        return SL_NOMEM;
#define SET(option, value) rc = rc ? rc : curl_easy_setopt(c, option, value)
    SET(CURLOPT_URL, sl_json_str(hook, "url", ""));
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_POSTFIELDS, s->body);
    SET(CURLOPT_HTTPHEADER, s->headers);
    SET(CURLOPT_USERAGENT, "softlaunch/" SL_VERSION);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_PROXY, ""); /* a proxy would look the name up by itself */
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_TIMEOUT_MS, SL_WEBHOOK_TIMEOUT_MS);
    SET(CURLOPT_FORBID_REUSE, 1L);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, s);
    SET(CURLOPT_WRITEFUNCTION, take_answer);
    SET(CURLOPT_WRITEDATA, s);
    SET(CURLOPT_ERRORBUFFER, s->error);
    SET(CURLOPT_PRIVATE, s);
#undef SET
    return rc || curl_multi_add_handle(sender->multi, c) ? SL_NOMEM : 0;
}

static int64_t retry_ms(const struct sending *s, CURL *curl)
{
    int64_t delay = SL_WEBHOOK_LAST_RETRY_MS;
    curl_off_t asked_s = 0;
    unsigned char random = 128;

    if (s->tries < 12)
        delay = SL_WEBHOOK_FIRST_RETRY_MS << s->tries;
    if (delay > SL_WEBHOOK_LAST_RETRY_MS)
        delay = SL_WEBHOOK_LAST_RETRY_MS;
    RAND_bytes(&random, 1);
    delay += delay * (random - 128) / 640; /* a fifth more or less, so that not all come at once */
    curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &asked_s);
    if (asked_s * 1000 > delay)
        delay = asked_s * 1000 > SL_WEBHOOK_LAST_RETRY_MS ? SL_WEBHOOK_LAST_RETRY_MS : asked_s * 1000;
    return delay;
}

static int judge(struct sl_webhooks *w, struct sending *s, CURLcode result, struct sl_err *err)
{
    int64_t now_ms = sl_now_us() / 1000, due_ms = now_ms + retry_ms(s, s->curl);
    char why[CURL_ERROR_SIZE + 128] = "";
    long status = 0;

    curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status >= 200 && status < 300)
        return sl_webhooks_tried(w, s->id, "done", 0, status, NULL, err);
    if (s->refused[0]) {
        snprintf(why, sizeof why,
                 "%s is a private address: start the server with --webhook-allow to let it go there", s->refused);
        return sl_webhooks_tried(w, s->id, "given_up", 0, 0, why, err);
    }
    if (status)
        snprintf(why, sizeof why, "the receiver answered %ld%s", status,
                 status >= 300 && status < 400 ? " (redirects are not followed)" : "");
    else
        snprintf(why, sizeof why, "%s", s->error[0] ? s->error : curl_easy_strerror(result));
    sl_log(SL_WARN, NULL, "webhook %s: %s", s->hook, why);
    if (status == 410 || due_ms - s->created_ms > SL_WEBHOOK_AGE_MS)
        return sl_webhooks_tried(w, s->id, "given_up", 0, status, why, err);
    return sl_webhooks_tried(w, s->id, "waiting", due_ms, status, why, err);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static int take_ended(struct sl_webhooks *w, struct sl_err *err)
{
    struct sl_webhook_sender *sender = w->sender;
    int left, rc = 0;

    for (CURLMsg *m; (m = curl_multi_info_read(sender->multi, &left));) {
        struct sending *s = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &s);
        int one = judge(w, s, m->data.result, rc ? NULL : err); /* unsaid to the database it is sent again */
        rc = rc ? rc : one;
        end_sending(sender, s);
    }
    return rc;
}

/* Places that are free, or where the webhook of this name is under way. */
static int count(const struct sl_webhook_sender *sender, const char *hook, const char *id)
{
    int n = 0;

    for (int i = 0; i < SL_WEBHOOK_AT_ONCE; i++)
        n += sender->at[i].curl && !strcmp(sender->at[i].hook, hook) && (!id || !strcmp(sender->at[i].id, id));
    return n;
}

static int start_due(struct sl_webhooks *w, int64_t *ret_next_ms, struct sl_err *err)
{
    struct sl_webhook_sender *sender = w->sender;
    json_t *due = NULL, *hooks = NULL, *d;
    size_t i;
    int rc = sl_webhooks_due(w, sl_now_us() / 1000, 4 * SL_WEBHOOK_AT_ONCE, &due, ret_next_ms, err);

    if (!rc && json_array_size(due))
        rc = sl_webhooks_all(w, &hooks, err);
    json_array_foreach(due, i, d) {
        const char *name = sl_json_str(d, "hook", ""), *id = sl_json_str(d, "id", "");
        const json_t *hook = json_object_get(hooks, name);
        struct sending *s = sender->at;
        while (s < sender->at + SL_WEBHOOK_AT_ONCE && s->curl)
            s++;
        if (rc || s == sender->at + SL_WEBHOOK_AT_ONCE)
            break;
        if (!hook || count(sender, name, id) || count(sender, name, NULL) >= SL_WEBHOOK_AT_ONCE_EACH)
            continue;
        s->w = w;
        snprintf(s->id, sizeof s->id, "%s", id);
        snprintf(s->hook, sizeof s->hook, "%s", name);
        s->tries = sl_json_int(d, "tries", 0);
        s->created_ms = sl_json_int(d, "created_ms", 0);
        s->body = strdup(sl_json_str(d, "body", ""));
        if (begin_sending(sender, s, hook)) {
            end_sending(sender, s);
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        }
    }
    json_decref(due);
    json_decref(hooks);
    return rc;
}

static void *sender_main(void *arg)
{
    struct sl_webhooks *w = arg;
    struct sl_webhook_sender *sender = w->sender;
    bool told = false;

    while (!atomic_load(&sender->ending)) {
        struct sl_err err = SL_ERR_INIT;
        int64_t now_ms = sl_now_us() / 1000, next_ms = 0, wait_ms = IDLE_MS;
        int running = 0, rc;

        curl_multi_perform(sender->multi, &running);
        rc = take_ended(w, &err);
        if (!rc)
            rc = start_due(w, &next_ms, &err);
        if (!rc && now_ms >= sender->forget_ms) {
            sender->forget_ms = now_ms + FORGET_MS;
            rc = sl_webhooks_forget(w, now_ms - SL_WEBHOOK_KEEP_MS, &err);
        }
        if (rc && !told)
            sl_log(SL_ERROR, NULL, "delivering webhooks: %s", err.msg);
        told = rc != 0;
        curl_multi_perform(sender->multi, &running);
        if (rc)
            wait_ms = TROUBLE_MS;
        else if (next_ms > now_ms)
            wait_ms = next_ms - now_ms < IDLE_MS ? next_ms - now_ms : IDLE_MS;
        else if (next_ms && !running) /* what has just ended leaves a place free */
            wait_ms = 50;
        curl_multi_poll(sender->multi, NULL, 0, running && wait_ms > 1000 ? 1000 : (int)wait_ms, NULL);
    }
    return NULL;
}

int sl_webhooks_send_start(struct sl_webhooks *w, struct sl_err *err)
{
    struct sl_webhook_sender *sender = calloc(1, sizeof *sender);
    int failed;

    if (sender)
        sender->multi = curl_multi_init();
    if (!sender || !sender->multi) {
        free(sender);
        return sl_err_set(err, SL_NOMEM, "out of memory");
    }
    w->sender = sender;
    failed = pthread_create(&sender->thread, NULL, sender_main, w);
    if (!failed)
        return 0;
    curl_multi_cleanup(sender->multi);
    free(sender);
    w->sender = NULL;
    errno = failed;
    return sl_err_errno(err, "starting the thread of webhooks");
}

void sl_webhooks_send_stop(struct sl_webhooks *w)
{
    struct sl_webhook_sender *sender = w->sender;

    if (!sender)
        return;
    atomic_store(&sender->ending, true);
    curl_multi_wakeup(sender->multi);
    pthread_join(sender->thread, NULL);
    for (int i = 0; i < SL_WEBHOOK_AT_ONCE; i++)
        if (sender->at[i].curl)
            end_sending(sender, &sender->at[i]);
    curl_multi_cleanup(sender->multi);
    free(sender);
    w->sender = NULL;
}

void sl_webhooks_wake(struct sl_webhooks *w)
{
    if (w->sender)
        curl_multi_wakeup(w->sender->multi);
}

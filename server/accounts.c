#include "server/accounts.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "server/sessions.h"
#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_MAX (32u << 20)
#define TITLE_MAX 200

/* What is shown to the world is swapped whole under the lock after the file is written; a writer
 * works on a copy. */
struct sl_accounts {
    char path[SL_PATH_MAX];
    pthread_mutex_t writing;
    pthread_rwlock_t lock; /* of the pointers below */
    json_t *accounts;      /* {"schema", "users": {name: user}, "tokens": {id: token}} */
    json_t *by_sha256;     /* token's sha256 -> its id */
};

static const char *const role_words[] = {"none", "viewer", "member", "admin"};

enum sl_role sl_role_of(const char *word)
{
    for (int i = SL_ROLE_VIEWER; word && i <= SL_ROLE_ADMIN; i++)
        if (!strcmp(word, role_words[i]))
            return (enum sl_role)i;
    return SL_ROLE_NONE;
}

const char *sl_role_word(enum sl_role role)
{
    return role_words[role];
}

static int nomem(struct sl_err *err)
{
    return sl_err_set(err, SL_NOMEM, "out of memory");
}

static json_t *member(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

/* ---- the files ------------------------------------------------------------------------------- */

static json_t *index_of(const json_t *accounts)
{
    json_t *index = json_object(), *token;
    const char *id;
    json_object_foreach(member(accounts, "tokens"), id, token)
        if (json_object_set_new(index, sl_json_str(token, "sha256", ""), json_string(id))) {
            json_decref(index);
            return NULL;
        }
    return index;
}

int sl_accounts_open(const char *data_dir, struct sl_accounts **ret_accounts, struct sl_err *err)
{
    struct sl_accounts *a = calloc(1, sizeof *a);
    char dir[SL_PATH_MAX];
    if (!a)
        return nomem(err);
    pthread_mutex_init(&a->writing, NULL);
    pthread_rwlock_init(&a->lock, NULL);
    int rc = sl_path(dir, err, "%s/auth", data_dir);
    if (rc == 0)
        rc = sl_path(a->path, err, "%s/accounts.json", dir);
    if (rc == 0)
        rc = sl_mkdirs(dir, err);
    if (rc == 0 && chmod(dir, 0700))
        rc = sl_err_errno(err, "closing %s to others", dir);
    if (rc == 0)
        rc = sl_json_read_or(a->path, FILE_MAX,
                             json_pack("{s:i, s:{}, s:{}}", "schema", 1, "users", "tokens"),
                             &a->accounts, err);
    if (rc == 0 && (sl_json_int(a->accounts, "schema", 0) != 1 ||
                    !json_is_object(member(a->accounts, "users")) ||
                    !json_is_object(member(a->accounts, "tokens"))))
        rc = sl_err_set(err, SL_DATA, "%s is not as this version writes it", a->path);
    if (rc == 0 && !(a->by_sha256 = index_of(a->accounts)))
        rc = nomem(err);
    if (rc) {
        sl_accounts_close(a);
        return rc;
    }
    *ret_accounts = a;
    return 0;
}

void sl_accounts_close(struct sl_accounts *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->writing);
    pthread_rwlock_destroy(&a->lock);
    json_decref(a->accounts);
    json_decref(a->by_sha256);
    free(a);
}

/* A copy to change; `writing` is held until commit. */
static json_t *begin(struct sl_accounts *a)
{
    pthread_mutex_lock(&a->writing);
    return json_deep_copy(a->accounts); /* writers alone replace it: reading needs no lock */
}

static int commit(struct sl_accounts *a, json_t *changed, int rc, struct sl_err *err)
{
    json_t *index = NULL;
    if (rc == 0 && !(index = index_of(changed)))
        rc = nomem(err);
    if (rc == 0)
        rc = sl_json_write(a->path, changed, err);
    if (rc == 0) {
        json_t *old = a->accounts, *old_index = a->by_sha256;
        pthread_rwlock_wrlock(&a->lock);
        a->accounts = changed;
        a->by_sha256 = index;
        pthread_rwlock_unlock(&a->lock);
        changed = old;
        index = old_index;
    }
    json_decref(changed);
    json_decref(index);
    pthread_mutex_unlock(&a->writing);
    return rc;
}

/* ---- looking up ------------------------------------------------------------------------------ */

static bool listed(const json_t *list, const char *name)
{
    const json_t *one;
    size_t i;
    json_array_foreach(list, i, one)
        if (!strcmp(json_string_value(one), name))
            return true;
    return false;
}

/* What both lists allow, as a new list; NULL: everything. */
static json_t *both(const json_t *x, const json_t *y)
{
    const json_t *one;
    size_t i;
    if (!json_is_array(x) && !json_is_array(y))
        return NULL;
    json_t *result = json_array();
    json_array_foreach(json_is_array(x) ? x : y, i, one)
        if (!json_is_array(x) || !json_is_array(y) || listed(y, json_string_value(one)))
            json_array_append_new(result, json_string(json_string_value(one)));
    return result;
}

bool sl_accounts_by_token(struct sl_accounts *a, const char *sha256, int64_t now_ms,
                          struct sl_identity *ret_who)
{
    struct sl_identity who = {.via = SL_VIA_BEARER};
    pthread_rwlock_rdlock(&a->lock);
    const char *id = json_string_value(json_object_get(a->by_sha256, sha256));
    const json_t *token = id ? member(member(a->accounts, "tokens"), id) : NULL;
    const char *name = sl_json_str(token, "user", NULL);
    const json_t *user = name ? member(member(a->accounts, "users"), name) : NULL;
    int64_t expires_ms = sl_json_int(token, "expires_ms", 0);
    bool ok = token && !sl_json_int(token, "revoked_ms", 0) &&
              (!expires_ms || now_ms < expires_ms) && (!name || user);
    if (ok) {
        who.role = sl_role_of(sl_json_str(token, "role", NULL));
        if (user && sl_role_of(sl_json_str(user, "role", NULL)) < who.role)
            who.role = sl_role_of(sl_json_str(user, "role", NULL));
        who.projects = both(member(token, "projects"), member(user, "projects"));
        who.expires_ms = expires_ms;
        snprintf(who.user, sizeof who.user, "%s%s", name ? "" : SL_SERVICE_PREFIX,
                 name ? name : sl_json_str(token, "service", ""));
        snprintf(who.token, sizeof who.token, "%s", id);
        *ret_who = who;
    }
    pthread_rwlock_unlock(&a->lock);
    return ok;
}

bool sl_accounts_by_name(struct sl_accounts *a, const char *name, struct sl_identity *ret_who)
{
    pthread_rwlock_rdlock(&a->lock);
    const json_t *user = member(member(a->accounts, "users"), name);
    if (user) {
        struct sl_identity who = {.role = sl_role_of(sl_json_str(user, "role", NULL)),
                                  .via = SL_VIA_PROXY,
                                  .projects = both(member(user, "projects"), NULL)};
        snprintf(who.user, sizeof who.user, "%s", name);
        *ret_who = who;
    }
    pthread_rwlock_unlock(&a->lock);
    return user != NULL;
}

/* ---- users ----------------------------------------------------------------------------------- */

/* Letters, digits, and . _ @ + - behind the first: an address is a name too. */
static bool user_name_valid(const char *name)
{
    size_t len = name ? strlen(name) : 0;
    if (len == 0 || len > SL_USER_MAX || !isalnum((unsigned char)name[0]) ||
        !strcmp(name, SL_ROOT_USER))
        return false;
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._@+-", *p))
            return false;
    return true;
}

static int check_projects(const json_t *projects, struct sl_err *err)
{
    const json_t *one;
    size_t i;
    if (!projects || json_is_null(projects))
        return 0;
    if (!json_is_array(projects) || json_array_size(projects) == 0 ||
        json_array_size(projects) > SL_TOKEN_PROJECTS_MAX)
        return sl_err_set(err, SL_SPEC, "projects: expected 1 to %d names, or null for all",
                          SL_TOKEN_PROJECTS_MAX);
    json_array_foreach(projects, i, one) {
        const char *name = json_string_value(one);
        if (!name || !*name || strlen(name) > 128)
            return sl_err_set(err, SL_SPEC, "projects[%zu]: expected the name of a project", i);
    }
    return 0;
}

static json_t *or_null(const json_t *value)
{
    return value ? json_deep_copy(value) : json_null();
}

static json_t *shown_user(const char *name, const json_t *user)
{
    json_t *shown = json_deep_copy(user);
    json_object_set_new(shown, "user", json_string(name));
    return shown;
}

int sl_accounts_add_user(struct sl_accounts *a, const char *name, enum sl_role role,
                         const json_t *projects, const char *by, json_t **ret_user,
                         struct sl_err *err)
{
    if (!user_name_valid(name))
        return sl_err_set(err, SL_SPEC,
                          "user: expected 1 to %d letters, digits and . _ @ + -, not " SL_ROOT_USER,
                          SL_USER_MAX);
    if (role == SL_ROLE_NONE)
        return sl_err_set(err, SL_SPEC, "role: expected viewer, member or admin");
    int rc = check_projects(projects, err);
    if (rc)
        return rc;
    json_t *changed = begin(a), *users = member(changed, "users");
    json_t *user =
        json_pack("{s:s, s:o, s:I, s:s}", "role", sl_role_word(role), "projects", or_null(projects),
                  "created_ms", (json_int_t)(sl_now_us() / 1000), "created_by", by);
    if (member(users, name))
        rc = sl_err_set(err, SL_CONFLICT, "there is a user %s already", name);
    else if (json_object_size(users) >= SL_USERS_MAX)
        rc = sl_err_set(err, SL_CONFLICT, "there are %d users already", SL_USERS_MAX);
    else if (!user || json_object_set(users, name, user))
        rc = nomem(err);
    rc = commit(a, changed, rc, err);
    if (rc == 0)
        *ret_user = shown_user(name, user);
    json_decref(user);
    return rc;
}

static int no_user(const char *name, struct sl_err *err)
{
    return sl_err_set(err, SL_NOTFOUND, "there is no user %s; `softlaunch user ls` lists them",
                      name);
}

int sl_accounts_set_user(struct sl_accounts *a, const char *name, enum sl_role role,
                         const json_t *projects, json_t **ret_user, struct sl_err *err)
{
    int rc = check_projects(projects, err);
    if (rc)
        return rc;
    json_t *changed = begin(a), *user = member(member(changed, "users"), name);
    json_incref(user);
    if (!user)
        rc = no_user(name, err);
    if (rc == 0 && role != SL_ROLE_NONE)
        json_object_set_new(user, "role", json_string(sl_role_word(role)));
    if (rc == 0 && projects)
        json_object_set_new(user, "projects", json_deep_copy(projects));
    rc = commit(a, changed, rc, err);
    if (rc == 0)
        *ret_user = shown_user(name, user);
    json_decref(user);
    return rc;
}

int sl_accounts_remove_user(struct sl_accounts *a, const char *name, struct sl_err *err)
{
    json_t *changed = begin(a), *token;
    int64_t now_ms = sl_now_us() / 1000;
    const char *id;
    int rc = 0;
    if (json_object_del(member(changed, "users"), name))
        rc = no_user(name, err);
    /* A later user of that name gets none of these. */
    json_object_foreach(member(changed, "tokens"), id, token)
        if (!strcmp(sl_json_str(token, "user", ""), name) && !sl_json_int(token, "revoked_ms", 0))
            json_object_set_new(token, "revoked_ms", json_integer((json_int_t)now_ms));
    return commit(a, changed, rc, err);
}

static int by_user(const void *x, const void *y)
{
    return strcmp(sl_json_str(*(json_t *const *)x, "user", ""),
                  sl_json_str(*(json_t *const *)y, "user", ""));
}

static int newest_first(const void *x, const void *y)
{
    int64_t a = sl_json_int(*(json_t *const *)x, "created_ms", 0);
    int64_t b = sl_json_int(*(json_t *const *)y, "created_ms", 0);
    return a < b   ? 1
           : a > b ? -1
                   : strcmp(sl_json_str(*(json_t *const *)x, "id", ""),
                            sl_json_str(*(json_t *const *)y, "id", ""));
}

/* The objects of `all`, each with its key as `key`, in order. Of user alone when that is given. */
static int sorted(const json_t *all, const char *key, const char *user,
                  int (*compare)(const void *, const void *), json_t **ret_list, struct sl_err *err)
{
    size_t n = 0;
    json_t **items = calloc(json_object_size(all) + 1, sizeof(json_t *)), *one;
    json_t *list = json_array();
    const char *name;
    json_object_foreach((json_t *)(uintptr_t)all, name, one) {
        if (!items || (user && strcmp(sl_json_str(one, "user", ""), user) != 0))
            continue;
        items[n] = json_deep_copy(one);
        json_object_set_new(items[n], key, json_string(name));
        json_object_del(items[n++], "sha256");
    }
    if (items)
        qsort(items, n, sizeof *items, compare);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, items[i]);
    int rc = items && json_array_size(list) == n ? 0 : nomem(err);
    free(items);
    if (rc == 0)
        *ret_list = list;
    else
        json_decref(list);
    return rc;
}

int sl_accounts_users(struct sl_accounts *a, json_t **ret_users, struct sl_err *err)
{
    pthread_rwlock_rdlock(&a->lock);
    int rc = sorted(member(a->accounts, "users"), "user", NULL, by_user, ret_users, err);
    pthread_rwlock_unlock(&a->lock);
    return rc;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* Tokens that ended long ago make room. */
static void forget_ended(json_t *tokens, int64_t now_ms)
{
    json_t *token;
    void *next;
    const char *id;
    const int64_t month_ms = INT64_C(30) * 24 * 3600 * 1000;
    json_object_foreach_safe(tokens, next, id, token)
    {
        int64_t revoked = sl_json_int(token, "revoked_ms", 0);
        int64_t expires = sl_json_int(token, "expires_ms", 0);
        if ((revoked && revoked + month_ms < now_ms) || (expires && expires + month_ms < now_ms))
            json_object_del(tokens, id);
    }
}

int sl_accounts_add_token(struct sl_accounts *a, const struct sl_new_token *t,
                          char ret_text[SL_TOKEN_TEXT + 1], json_t **ret_token, struct sl_err *err)
{
    char text[SL_TOKEN_TEXT + 1] = "slt_", id[17], sha256[SL_SHA256_HEX + 1];
    int64_t now_ms = sl_now_us() / 1000;
    int rc = check_projects(t->projects, err);
    if (rc)
        return rc;
    if (!t->user == !t->service || (t->service && !user_name_valid(t->service)))
        return sl_err_set(
            err, SL_SPEC,
            "user, service: expected one of them, 1 to %d letters, digits and . _ @ + -",
            SL_USER_MAX);
    if (t->role == SL_ROLE_NONE)
        return sl_err_set(err, SL_SPEC, "role: expected viewer, member or admin");
    if (t->title && strlen(t->title) > TITLE_MAX)
        return sl_err_set(err, SL_SPEC, "title: at most %d bytes", TITLE_MAX);
    if (t->expires_ms && t->expires_ms <= now_ms)
        return sl_err_set(err, SL_SPEC, "the token would have expired already");
    rc = sl_secret_hex(text + 4, 32, err);
    if (rc == 0)
        rc = sl_secret_hex(id, 8, err);
    if (rc == 0)
        rc = sl_sha256_data(text, strlen(text), sha256, err);
    if (rc)
        return rc;
    json_t *changed = begin(a), *tokens = member(changed, "tokens");
    forget_ended(tokens, now_ms);
    json_t *token = json_pack(
        "{s:s, s:s*, s:s*, s:s*, s:s, s:o, s:I, s:s, s:o, s:n}", "sha256", sha256, "user", t->user,
        "service", t->service, "title", t->title, "role", sl_role_word(t->role), "projects",
        or_null(t->projects), "created_ms", (json_int_t)now_ms, "created_by", t->by, "expires_ms",
        t->expires_ms ? json_integer((json_int_t)t->expires_ms) : json_null(), "revoked_ms");
    if (t->user && !member(member(changed, "users"), t->user))
        rc = no_user(t->user, err);
    else if (json_object_size(tokens) >= SL_TOKENS_MAX)
        rc =
            sl_err_set(err, SL_CONFLICT, "there are %d tokens already: revoke some", SL_TOKENS_MAX);
    else if (!token || json_object_set(tokens, id, token))
        rc = nomem(err);
    rc = commit(a, changed, rc, err);
    if (rc == 0) {
        *ret_token = json_deep_copy(token);
        json_object_del(*ret_token, "sha256");
        json_object_set_new(*ret_token, "id", json_string(id));
        memcpy(ret_text, text, sizeof text);
    }
    json_decref(token);
    return rc;
}

int sl_accounts_revoke(struct sl_accounts *a, const char *id, const char *owner, struct sl_err *err)
{
    json_t *changed = begin(a), *token = member(member(changed, "tokens"), id);
    int rc = 0;
    if (!token || (owner && strcmp(sl_json_str(token, "user", ""), owner) != 0))
        rc = sl_err_set(err, SL_NOTFOUND,
                        "there is no token %.40s; `softlaunch token ls` lists them", id);
    else if (!sl_json_int(token, "revoked_ms", 0))
        json_object_set_new(token, "revoked_ms", json_integer((json_int_t)(sl_now_us() / 1000)));
    return commit(a, changed, rc, err);
}

int sl_accounts_tokens(struct sl_accounts *a, const char *user, json_t **ret_tokens,
                       struct sl_err *err)
{
    pthread_rwlock_rdlock(&a->lock);
    int rc = sorted(member(a->accounts, "tokens"), "id", user, newest_first, ret_tokens, err);
    pthread_rwlock_unlock(&a->lock);
    return rc;
}

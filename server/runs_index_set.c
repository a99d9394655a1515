/* Which runs a list's conditions leave: a set of one bit for each number of a run. */
#include "base/buf.h"
#include "base/json.h"
#include "server/runs_index_priv.h"
#include <stdlib.h>
#include <string.h>

#define TRIGRAM 3 /* characters that runs_words knows a word by */

/* Takes away what the statement does not give. */
static int narrow(struct sl_db_conn *c, struct sl_runs_set *set, sqlite3_stmt *s, uint64_t **more, struct sl_err *err)
{
    size_t words = (size_t)(set->n_bits + 63) / 64;
    int rc;

    if (!*more)
        *more = calloc(words, sizeof **more);
    if (!*more)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    while ((rc = sl_db_step(c, s, err)) > 0) {
        int64_t n = sqlite3_column_int64(s, 0);
        if (n < set->n_bits)
            (*more)[n / 64] |= UINT64_C(1) << (n % 64);
    }
    return rc;
}

static void keep_both(struct sl_runs_set *set, uint64_t *more)
{
    size_t words = (size_t)(set->n_bits + 63) / 64;

    if (!set->bits) {
        set->bits = more;
        return;
    }
    for (size_t i = 0; i < words; i++)
        set->bits[i] &= more[i];
    free(more);
}

/* Those with one of the texts (list, or one) in what sql asks for. */
static int narrow_by(struct sl_db_conn *c, struct sl_runs_set *set, const char *sql, const char *one,
                     const json_t *list, struct sl_err *err)
{
    uint64_t *more = NULL;
    size_t n = list ? json_array_size(list) : 1;
    int rc = 0;

    for (size_t i = 0; !rc && i < n; i++) {
        sqlite3_stmt *s = sl_db_stmt(c, sql, err);
        if (!s) {
            rc = SL_IO;
            break;
        }
        sl_db_text(s, 1, list ? json_string_value(json_array_get(list, i)) : one);
        rc = narrow(c, set, s, &more, err);
    }
    if (!rc && !more) /* an empty list: none */
        more = calloc((size_t)(set->n_bits + 63) / 64, sizeof *more);
    if (rc)
        free(more);
    else
        keep_both(set, more);
    return rc;
}

/* %word% with LIKE's own characters escaped. */
static void pattern_of(const char *word, size_t len, char ret[2 * SL_RUNS_Q_MAX + 3])
{
    size_t at = 0;

    ret[at++] = '%';
    for (size_t i = 0; i < len; i++) {
        if (strchr("%_\\", word[i]))
            ret[at++] = '\\';
        ret[at++] = word[i];
    }
    ret[at++] = '%';
    ret[at] = 0;
}

/* "word" as FTS5 has it, behind what is there already. */
static void phrase_of(const char *word, size_t len, struct sl_buf *all)
{
    sl_buf_adds(all, all->len ? " AND \"" : "\"");
    for (size_t i = 0; i < len; i++) {
        if (word[i] == '"')
            sl_buf_addc(all, '"');
        sl_buf_addc(all, word[i]);
    }
    sl_buf_adds(all, "\"");
}

static size_t characters(const char *word, size_t len)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)word[i] & 0xc0) != 0x80;
    return n;
}

/* Words of three characters and more are in runs_words; shorter ones are looked for in every text. */
static int narrow_by_words(struct sl_db_conn *c, struct sl_runs_set *set, const char *q, struct sl_err *err)
{
    char pattern[2 * SL_RUNS_Q_MAX + 3], *phrases;
    struct sl_buf all;
    int n = 0, rc = 0;

    if (strlen(q) > SL_RUNS_Q_MAX)
        return sl_err_set(err, SL_SPEC, "q: at most %d bytes", SL_RUNS_Q_MAX);
    sl_buf_init(&all, 4 * SL_RUNS_Q_MAX);
    for (q += strspn(q, " \t"); !rc && *q; q += strspn(q, " \t")) {
        size_t len = strcspn(q, " \t");
        if (n++ == SL_RUNS_WORDS_MAX) {
            rc = sl_err_set(err, SL_SPEC, "q: at most %d words", SL_RUNS_WORDS_MAX);
        } else if (characters(q, len) >= TRIGRAM) {
            phrase_of(q, len, &all);
        } else {
            pattern_of(q, len, pattern);
            rc = narrow_by(c, set, "SELECT n FROM runs_text WHERE text LIKE ?1 ESCAPE '\\'", pattern, NULL, err);
        }
        q += len;
    }
    if (rc || !all.len) {
        sl_buf_release(&all);
        return rc;
    }
    phrases = sl_buf_take(&all);
    if (!phrases)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    rc = narrow_by(c, set, "SELECT rowid FROM runs_words WHERE runs_words MATCH ?1", phrases, NULL, err);
    free(phrases);
    return rc;
}

/* Those with every one of the tags between commas. */
static int narrow_by_tags(struct sl_db_conn *c, struct sl_runs_set *set, const char *tags, struct sl_err *err)
{
    char tag[SL_RUNS_Q_MAX + 1];
    int rc = 0;

    if (strlen(tags) > SL_RUNS_Q_MAX)
        return sl_err_set(err, SL_SPEC, "tag: at most %d bytes", SL_RUNS_Q_MAX);
    for (tags += strspn(tags, ","); !rc && *tags; tags += strspn(tags, ",")) {
        size_t len = strcspn(tags, ",");
        snprintf(tag, sizeof tag, "%.*s", (int)len, tags);
        rc = narrow_by(c, set, "SELECT n FROM runs_tags WHERE tag = ?1", tag, NULL, err);
        tags += len;
    }
    return rc;
}

static int number_of(struct sl_db_conn *c, const char *sql, int64_t *ret, struct sl_err *err)
{
    sqlite3_stmt *s = sl_db_stmt(c, sql, err);
    int rc = s ? sl_db_step(c, s, err) : SL_IO;

    *ret = rc > 0 ? sqlite3_column_int64(s, 0) : 0;
    if (s)
        sqlite3_reset(s);
    return rc < 0 ? rc : 0;
}

int sl_runs_set_of(struct sl_db_conn *c, const struct sl_runs_query *q, struct sl_runs_set *set, int64_t *ret_total,
                  struct sl_err *err)
{
    const struct {
        const char *value, *sql;
    } conditions[] = {
        {q->project, "SELECT n FROM runs INDEXED BY runs_project WHERE project = ?1"},
        {q->queue, "SELECT n FROM runs INDEXED BY runs_queue WHERE queue = ?1"},
        {q->state, "SELECT n FROM runs INDEXED BY runs_state WHERE state = ?1"},
    };
    int64_t max_n = 0, total = 0;
    int rc = number_of(c, "SELECT max(n) FROM runs", &max_n, err);

    set->n_bits = max_n + 1;
    if (!rc && q->projects)
        rc = narrow_by(c, set, conditions[0].sql, NULL, q->projects, err);
    for (int i = 0; !rc && i < 3; i++)
        if (conditions[i].value && *conditions[i].value)
            rc = narrow_by(c, set, conditions[i].sql, conditions[i].value, NULL, err);
    if (!rc && q->tag && *q->tag)
        rc = narrow_by_tags(c, set, q->tag, err);
    if (!rc && q->q && *q->q)
        rc = narrow_by_words(c, set, q->q, err);
    if (!rc && !set->bits)
        rc = number_of(c, "SELECT count(*) FROM runs", &total, err);
    for (int64_t i = 0; !rc && set->bits && i < (set->n_bits + 63) / 64; i++)
        total += __builtin_popcountll(set->bits[i]);
    *ret_total = total;
    return rc;
}

/* The few of a set as a JSON list. */
char *sl_runs_set_numbers(const struct sl_runs_set *set)
{
    json_t *list = json_array();
    char *text;

    for (int64_t i = 0; i < set->n_bits; i++)
        if (!set->bits[i / 64])
            i |= 63;
        else if (sl_runs_set_has(set, i))
            json_array_append_new(list, json_integer(i));
    text = sl_json_dump(list);
    json_decref(list);
    return text;
}

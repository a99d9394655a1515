#include "engine/data/wordnet.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "engine/data/data.h"
#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SYNSETS_MAX (1 << 20)
#define LEXNAMES 45
#define OUT_FILE_MAX (64u << 20)

enum part { NOUN, VERB, ADJECTIVE, ADVERB };
static const char *const file_names[SL_WORDNET_PARTS] = {"data.noun", "data.verb", "data.adj",
                                                         "data.adv"};
static const char *const part_words[SL_WORDNET_PARTS] = {"noun", "verb", "adjective", "adverb"};
static const char *const split_names[SL_WORDNET_SPLITS] = {"train", "validation", "test"};

/* lexnames(5WN), the noun files, without "noun."; noun.Tops (3) mixes kinds. */
static const char *const noun_words[LEXNAMES] = {
    [4] = "act",       [5] = "animal",      [6] = "artifact",       [7] = "attribute",
    [8] = "body",      [9] = "cognition",   [10] = "communication", [11] = "event",
    [12] = "feeling",  [13] = "food",       [14] = "group",         [15] = "location",
    [16] = "motive",   [17] = "object",     [18] = "person",        [19] = "phenomenon",
    [20] = "plant",    [21] = "possession", [22] = "process",       [23] = "quantity",
    [24] = "relation", [25] = "shape",      [26] = "state",         [27] = "substance",
    [28] = "time",
};

struct synset {
    const char *gloss; /* into the file's map */
    int len;
    int lexname;
    enum part part;
    char id[12]; /* "n00001740" */
    bool used;
};

struct wordnet {
    struct sl_map map[SL_WORDNET_PARTS];
    struct synset *synset;
    int n, cap;
};

struct picked {
    const struct synset *synset;
    const char *task, *answer;
};

/* ---- reading ------------------------------------------------------------------------------- */

/* The definition in a gloss: up to the first example or remark, trimmed. */
static int definition(const char *gloss, int len)
{
    for (int i = 0; i + 2 < len; i++)
        if (!memcmp(gloss + i, "; \"", 3) || !memcmp(gloss + i, ";  ", 3))
            len = i;
    while (len && (isspace((unsigned char)gloss[len - 1]) || strchr(";:,", gloss[len - 1])))
        len--;
    return len;
}

static int add_line(struct wordnet *w, enum part part, const char *line, int len,
                    struct sl_err *err)
{
    const char *bar = memchr(line, '|', (size_t)len);
    struct synset s = {.part = part};

    char head[16] = ""; /* sscanf would take the length of the whole file each time */

    memcpy(head, line, (size_t)(len < 15 ? len : 15));
    if (!bar || sscanf(head, "%8[0-9] %2d", s.id + 1, &s.lexname) != 2 || strlen(s.id + 1) != 8 ||
        s.lexname < 0 || s.lexname >= LEXNAMES)
        return sl_err_set(err, SL_DATA, "not a line of WordNet's data files");
    s.id[0] = "nvar"[part];
    s.gloss = bar + 1;
    len -= (int)(s.gloss - line);
    while (len && isspace((unsigned char)*s.gloss))
        s.gloss++, len--;
    s.len = definition(s.gloss, len);
    if (s.len < SL_WORDNET_GLOSS_MIN || s.len > SL_WORDNET_GLOSS_MAX)
        return 0;
    for (int i = 0; i < s.len; i++)
        if ((unsigned char)s.gloss[i] < ' ' || (unsigned char)s.gloss[i] > '~')
            return 0; /* WordNet 3.0 is ASCII */
    if (w->n == w->cap) {
        int cap = w->cap ? 2 * w->cap : 65536;
        struct synset *bigger =
            cap <= SYNSETS_MAX ? realloc(w->synset, sizeof s * (size_t)cap) : NULL;
        if (!bigger)
            return sl_err_set(err, SL_NOMEM, "too many synsets for memory");
        w->synset = bigger;
        w->cap = cap;
    }
    w->synset[w->n++] = s;
    return 0;
}

static int read_file(struct wordnet *w, const char *dir, enum part part, struct sl_err *err)
{
    char path[SL_PATH_MAX];
    const char *p, *end, *newline;
    int rc = sl_path(path, err, "%s/%s", dir, file_names[part]), line = 1;

    if (!rc)
        rc = sl_map_open(path, &w->map[part], err);
    if (rc)
        return sl_err_wrap(err, rc,
                           "reading WordNet (Debian: package wordnet-base, /usr/share/wordnet)");
    p = (const char *)w->map[part].data;
    end = p + w->map[part].len;
    for (; !rc && p < end; p = newline + 1, line++) {
        newline = memchr(p, '\n', (size_t)(end - p));
        if (!newline)
            return sl_err_set(err, SL_DATA,
                              "%s:%d: the last line does not end: is the file truncated?", path,
                              line);
        if (p[0] == ' ' && p[1] == ' ')
            continue; /* the licence */
        rc = add_line(w, part, p, (int)(newline - p), err);
        if (rc)
            return sl_err_wrap(err, rc, "%s:%d", path, line);
    }
    return 0;
}

static int by_gloss(const void *a, const void *b)
{
    const struct synset *x = a, *y = b;
    int least = x->len < y->len ? x->len : y->len, d = memcmp(x->gloss, y->gloss, (size_t)least);
    return d ? d : x->len != y->len ? x->len - y->len : strcmp(x->id, y->id);
}

/* Drops every gloss that two synsets share: its answer is not certain, and it could be in two
 * splits. */
static void drop_shared(struct wordnet *w)
{
    int kept = 0;

    qsort(w->synset, (size_t)w->n, sizeof *w->synset, by_gloss);
    for (int i = 0, j; i < w->n; i = j) {
        for (j = i + 1; j < w->n && w->synset[j].len == w->synset[i].len &&
                        !memcmp(w->synset[j].gloss, w->synset[i].gloss, (size_t)w->synset[i].len);)
            j++;
        if (j == i + 1)
            w->synset[kept++] = w->synset[i];
    }
    w->n = kept;
}

/* ---- choosing ------------------------------------------------------------------------------ */

/* Takes one unused synset at random that fits; -1 when there is none. pool: shuffled indices; *at:
 * where to go on. */
static int take(struct wordnet *w, const int *pool, int *at, int part, int lexname)
{
    for (; *at < w->n; ++*at) {
        struct synset *s = &w->synset[pool[*at]];
        if (s->used || (int)s->part != part || (lexname >= 0 && s->lexname != lexname))
            continue;
        s->used = true;
        return pool[*at];
    }
    return -1;
}

static void largest(const struct wordnet *w, int ret_lexname[SL_WORDNET_CATEGORIES])
{
    int count[LEXNAMES] = {0};

    for (int i = 0; i < w->n; i++)
        if (w->synset[i].part == NOUN && noun_words[w->synset[i].lexname])
            count[w->synset[i].lexname]++;
    for (int c = 0; c < SL_WORDNET_CATEGORIES; c++) {
        int best = -1;
        for (int l = 0; l < LEXNAMES; l++)
            if (noun_words[l] && count[l] >= 0 && (best < 0 || count[l] > count[best]))
                best = l;
        ret_lexname[c] = best;
        count[best] = -1;
    }
}

static void shuffle(void *base, size_t n, size_t size, struct sl_rng *rng)
{
    char tmp[64], *p = base;

    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)sl_rng_below(rng, i);
        memcpy(tmp, p + (i - 1) * size, size);
        memmove(p + (i - 1) * size, p + j * size, size);
        memcpy(p + j * size, tmp, size);
    }
}

/* Adds the rows of one task and split to rows; *cursor[class] goes on where the last split ended.
 */
static int pick(struct wordnet *w, const int *pool, const char *task, int n_rows, int n_classes,
                const int *lexname, int *cursor, struct picked *rows, int *n, struct sl_err *err)
{
    if (n_rows < 0 || n_rows % n_classes)
        return sl_err_set(err, SL_SPEC,
                          "task %s: %d rows do not divide into %d classes of equal counts", task,
                          n_rows, n_classes);
    for (int c = 0; c < n_classes; c++)
        for (int i = 0; i < n_rows / n_classes; i++) {
            const char *word = lexname ? noun_words[lexname[c]] : part_words[c];
            int s = take(w, pool, &cursor[c], lexname ? NOUN : c, lexname ? lexname[c] : -1);
            if (s < 0)
                return sl_err_set(err, SL_SPEC,
                                  "task %s: WordNet has too few usable glosses of class %s; "
                                  "ask for fewer rows",
                                  task, word);
            rows[(*n)++] = (struct picked){&w->synset[s], task, word};
        }
    return 0;
}

/* ---- writing ------------------------------------------------------------------------------- */

static int by_word(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* "What kind of thing is this: act, animal, ... or substance?" */
static int question(const char *start, const char *const *words, int n, struct sl_buf *buf)
{
    const char *sorted[SL_WORDNET_CATEGORIES];
    int rc;

    memcpy(sorted, words, sizeof *words * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, by_word);
    rc = sl_buf_adds(buf, start);
    for (int i = 0; !rc && i < n; i++)
        rc = sl_buf_addf(buf, "%s%s", !i ? " " : i + 1 == n ? " or " : ", ", sorted[i]);
    return rc ? rc : sl_buf_addc(buf, '?');
}

static int write_rows(const char *dir, const char *name, const struct picked *rows, int n,
                      const char *category_question, const char *part_question, struct sl_err *err)
{
    char path[SL_PATH_MAX], *line;
    struct sl_buf out;
    int rc = sl_path(path, err, "%s/%s.jsonl", dir, name);

    sl_buf_init(&out, OUT_FILE_MAX);
    for (int i = 0; !rc && i < n; i++) {
        const struct synset *s = rows[i].synset;
        json_t *json = json_pack("{s:s, s:s%, s:s, s:s, s:s}", "taskname", rows[i].task, "context",
                                 s->gloss, (size_t)s->len, "question",
                                 *rows[i].task == 'c' ? category_question : part_question, "answer",
                                 rows[i].answer, "synset", s->id);
        line = json ? json_dumps(json, 0) : NULL;
        if (!line || sl_buf_addf(&out, "%s\n", line))
            rc = sl_err_set(err, SL_NOMEM, "out of memory");
        free(line);
        json_decref(json);
    }
    if (!rc)
        rc = sl_file_write(path, out.p, out.len, err);
    sl_buf_release(&out);
    return rc;
}

static int choose_and_write(struct wordnet *w, const char *out_dir, uint64_t seed,
                            const struct sl_wordnet_sizes *sizes, int *pool, struct picked *rows,
                            struct sl_err *err)
{
    int lexname[SL_WORDNET_CATEGORIES], category_at[SL_WORDNET_CATEGORIES] = {0};
    int part_at[SL_WORDNET_PARTS] = {0}, n, rc = 0;
    const char *words[SL_WORDNET_CATEGORIES];
    struct sl_rng rng = sl_rng_new(seed, SL_RNG_DATA);
    struct sl_buf category, part;

    largest(w, lexname);
    for (int c = 0; c < SL_WORDNET_CATEGORIES; c++)
        words[c] = noun_words[lexname[c]];
    sl_buf_init(&category, 4096);
    sl_buf_init(&part, 4096);
    for (int i = 0; i < w->n; i++)
        pool[i] = i;
    shuffle(pool, (size_t)w->n, sizeof *pool, &rng);
    if (question("What kind of thing is this:", words, SL_WORDNET_CATEGORIES, &category) ||
        question("What part of speech is this:", part_words, SL_WORDNET_PARTS, &part))
        rc = sl_err_set(err, SL_NOMEM, "out of memory");
    for (int s = 0; !rc && s < SL_WORDNET_SPLITS; s++) {
        n = 0;
        rc = pick(w, pool, "category", sizes->category[s], SL_WORDNET_CATEGORIES, lexname,
                  category_at, rows, &n, err);
        if (!rc)
            rc = pick(w, pool, "part_of_speech", sizes->part_of_speech[s], SL_WORDNET_PARTS, NULL,
                      part_at, rows, &n, err);
        if (rc)
            break;
        shuffle(rows, (size_t)n, sizeof *rows, &rng);
        rc = write_rows(out_dir, split_names[s], rows, n, category.p, part.p, err);
    }
    sl_buf_release(&category);
    sl_buf_release(&part);
    return rc;
}

int sl_wordnet_write(const char *wordnet_dir, const char *out_dir, uint64_t seed,
                     const struct sl_wordnet_sizes *sizes, struct sl_err *err)
{
    struct wordnet w = {0};
    struct picked *rows = NULL;
    int *pool = NULL, rc = sl_mkdirs(out_dir, err);

    for (int p = 0; !rc && p < SL_WORDNET_PARTS; p++)
        rc = read_file(&w, wordnet_dir, (enum part)p, err);
    if (!rc) {
        drop_shared(&w);
        pool = calloc((size_t)w.n + 1, sizeof *pool);
        rows = calloc((size_t)w.n + 1, sizeof *rows);
        rc = pool && rows ? choose_and_write(&w, out_dir, seed, sizes, pool, rows, err)
                          : sl_err_set(err, SL_NOMEM, "out of memory");
    }
    free(pool);
    free(rows);
    free(w.synset);
    for (int p = 0; p < SL_WORDNET_PARTS; p++)
        sl_map_close(&w.map[p]);
    return rc;
}

/* ---- the subcommand ------------------------------------------------------------------------ */

static bool parse_sizes(const char *text, int ret_sizes[SL_WORDNET_SPLITS])
{
    int used = 0;
    return sscanf(text, "%7d,%7d,%7d%n", &ret_sizes[0], &ret_sizes[1], &ret_sizes[2], &used) == 3 &&
           !text[used];
}

int sl_data_wordnet(int argc, char **argv)
{
    static const struct option options[] = {
        {"wordnet", 1, NULL, 'w'},        {"out", 1, NULL, 'o'},
        {"seed", 1, NULL, 's'},           {"category", 1, NULL, 'c'},
        {"part-of-speech", 1, NULL, 'p'}, {NULL, 0, NULL, 0}};
    struct sl_wordnet_sizes sizes = SL_WORDNET_SIZES_DEFAULT;
    struct sl_err err = SL_ERR_INIT;
    const char *dir = NULL, *out = NULL;
    char *end = NULL;
    uint64_t seed = 1234;
    bool ok = true;
    int o;

    optind = 1;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (o == 'w')
            dir = optarg;
        else if (o == 'o')
            out = optarg;
        else if (o == 's')
            seed = strtoull(optarg, &end, 10), ok = ok && end != optarg && !*end;
        else if (o == 'c')
            ok = parse_sizes(optarg, sizes.category) && ok;
        else if (o == 'p')
            ok = parse_sizes(optarg, sizes.part_of_speech) && ok;
        else
            ok = false;
    }
    if (!ok || !dir || !out || optind < argc) {
        fprintf(
            stderr,
            "usage: softlaunch data wordnet --wordnet DIR --out DIR [--seed N]\n"
            "         [--category TRAIN,VALIDATION,TEST] [--part-of-speech TRAIN,VALIDATION,TEST]\n"
            "DIR holds WordNet 3.0's data.noun, data.verb, data.adj, data.adv.\n");
        return 2;
    }
    if (sl_wordnet_write(dir, out, seed, &sizes, &err)) {
        fprintf(stderr, "softlaunch data wordnet: %s\n", err.msg);
        return 1;
    }
    printf("%-24s %10s %16s\n", "file", "category", "part_of_speech");
    for (int s = 0; s < SL_WORDNET_SPLITS; s++)
        printf("%-24s %10d %16d\n", split_names[s], sizes.category[s], sizes.part_of_speech[s]);
    return 0;
}

/* .nemo archives of Megatron GPT models as a base model: names, shards and layouts as NeMo 1.x
 * saves them. Weights are used in place, in the mapped archive.
 *
 * TP > 1: rank r of a column-parallel layer (QKV, dense_h_to_4h, both embeddings of the vocabulary)
 * holds a run of its rows, of a row-parallel one (dense, dense_4h_to_h) a run of its columns; the
 * rest is the same on every rank. PP > 1: a stage holds a run of layers, numbered from 0; the last
 * stage of a tied model repeats the embedding as word_embeddings.weight. */
#include "engine/format/nemo.h"
#include "engine/text/tokenizer.h"
#include "engine/format/weights_format.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct nemo {
    struct sl_tar tar;
    json_t *config;
    int tp, pp;
    struct sl_torch **rank; /* [pp * tp], rank t of stage p at p * tp + t */
    void **block;           /* what tensors and layouts point to */
    int n_blocks;
    bool plus_one; /* layernorm1p */
    bool legacy;   /* QKV rows are [3, heads, head_dim] of each rank, else [heads, 3, head_dim] */
};

static int keep(struct nemo *n, size_t bytes, void **ret_p, struct sl_err *err)
{
    void **list = n->block;

    if (n->n_blocks % 64 == 0)
        list = realloc(list, (size_t)(n->n_blocks + 64) * sizeof *list);
    if (list) {
        n->block = list;
        list[n->n_blocks] = calloc(1, bytes ? bytes : 1);
    }
    if (!list || !list[n->n_blocks])
        return sl_err_set(err, SL_NOMEM, "out of memory for the model's layout");
    *ret_p = list[n->n_blocks++];
    return 0;
}

/* ---- ranks ---- */

/* The rank that a member's folder names; false: it is no file of weights. */
static bool rank_of(const char *name, int *ret_tp, int *ret_pp)
{
    const char *slash = strrchr(name, '/');
    int end = 0;

    if (strcmp(slash ? slash + 1 : name, SL_NEMO_WEIGHTS) != 0)
        return false;
    *ret_tp = *ret_pp = 0;
    if (!slash)
        return true;
    if (sscanf(name, "mp_rank_%2d/%n", ret_tp, &end) == 1 && end == slash + 1 - name)
        return true;
    return sscanf(name, "tp_rank_%2d_pp_rank_%3d/%n", ret_tp, ret_pp, &end) == 2 &&
           end == slash + 1 - name;
}

static int count_ranks(struct nemo *n, struct sl_err *err)
{
    int found = 0, tp, pp, rc;

    n->tp = n->pp = 0;
    for (int i = 0; i < n->tar.n; i++) {
        if (!rank_of(n->tar.member[i].name, &tp, &pp))
            continue;
        if (tp < 0 || tp >= SL_NEMO_MAX_TENSOR_PARALLEL || pp < 0 || pp >= SL_NEMO_MAX_PIPELINE)
            return sl_err_set(
                err, SL_DATA, "member '%.100s' is beyond %d tensor and %d pipeline ranks",
                n->tar.member[i].name, SL_NEMO_MAX_TENSOR_PARALLEL, SL_NEMO_MAX_PIPELINE);
        n->tp = tp >= n->tp ? tp + 1 : n->tp;
        n->pp = pp >= n->pp ? pp + 1 : n->pp;
        found++;
    }
    if (!found)
        return sl_err_set(err, SL_DATA, "the archive holds no " SL_NEMO_WEIGHTS);
    rc = sl_nemo_int(n->config, "tensor_model_parallel_size", n->tp, &tp, err);
    if (!rc)
        rc = sl_nemo_int(n->config, "pipeline_model_parallel_size", n->pp, &pp, err);
    if (!rc && (tp != n->tp || pp != n->pp || found != tp * pp))
        rc = sl_err_set(
            err, SL_DATA,
            "%d files of weights, for %d tensor and %d pipeline ranks, but " SL_NEMO_CONFIG
            " says %d and %d: some are missing",
            found, n->tp, n->pp, tp, pp);
    return rc;
}

static int open_ranks(struct nemo *n, struct sl_err *err)
{
    int tp, pp, rc = count_ranks(n, err);

    if (rc)
        return rc;
    n->rank = calloc((size_t)n->tp * (size_t)n->pp, sizeof *n->rank);
    if (!n->rank)
        return sl_err_set(err, SL_NOMEM, "out of memory for %d ranks", n->tp * n->pp);
    for (int i = 0; i < n->tar.n; i++) {
        const struct sl_tar_member *m = &n->tar.member[i];
        struct sl_torch **at;

        if (!rank_of(m->name, &tp, &pp))
            continue;
        at = &n->rank[pp * n->tp + tp];
        if (*at)
            return sl_err_set(err, SL_DATA, "two files of weights for tensor rank %d of stage %d",
                              tp, pp);
        rc = sl_torch_open(m->data, m->len, at, err);
        if (rc)
            return sl_err_wrap(err, rc, "member '%.100s'", m->name);
    }
    return 0;
}

/* ---- tensors ---- */

enum how { SAME, BY_ROWS, BY_COLS, FUSED };

static const struct rename {
    const char *theirs, *ours;
    enum how how;
    bool norm; /* its weight is stored less 1 with layernorm1p */
} model_names[] =
    {
        {"embedding.word_embeddings.weight", "embed", BY_ROWS, false},
        {"embedding.position_embeddings.weight", "pos_embed", SAME, false},
        {"encoder.final_layernorm.weight", "norm.weight", SAME, true},
        {"encoder.final_layernorm.bias", "norm.bias", SAME, false},
        {"output_layer.weight", "head", BY_ROWS, false},
},
  layer_names[] = {
      {"input_layernorm.weight", "norm1.weight", SAME, true},
      {"input_layernorm.bias", "norm1.bias", SAME, false},
      {"post_attention_layernorm.weight", "norm2.weight", SAME, true},
      {"post_attention_layernorm.bias", "norm2.bias", SAME, false},
      {"self_attention.query_key_value.weight", "", FUSED, false},
      {"self_attention.query_key_value.bias", ".bias", FUSED, false},
      {"self_attention.dense.weight", "o", BY_COLS, false},
      {"self_attention.dense.bias", "o.bias", SAME, false},
      {"mlp.dense_h_to_4h.weight", "up", BY_ROWS, false},
      {"mlp.dense_h_to_4h.bias", "up.bias", BY_ROWS, false},
      {"mlp.dense_4h_to_h.weight", "down", BY_COLS, false},
      {"mlp.dense_4h_to_h.bias", "down.bias", SAME, false},
};

static const struct rename *find_name(const struct rename *names, size_t n, const char *theirs)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i].theirs, theirs))
            return &names[i];
    return NULL;
}

/* One tensor of a stage on all of its ranks: the same shape and type everywhere. */
struct pieces {
    const struct sl_torch_tensor *first;
    enum sl_dtype dtype;
    int64_t rows, cols; /* of a piece; a vector's rows are 1 */
    size_t element;     /* bytes */
    const unsigned char **part;
};

static int gather_pieces(struct nemo *n, int stage, const struct sl_torch_tensor *first,
                         struct pieces *p, struct sl_err *err)
{
    void *list = NULL;
    int rc;

    *p = (struct pieces){.first = first, .rows = 1, .cols = first->dim[0]};
    if (first->n_dims == 2)
        p->rows = first->dim[0], p->cols = first->dim[1];
    else if (first->n_dims != 1)
        return sl_err_set(err, SL_SPEC, "tensor '%s' has %d dimensions; 1 and 2 are supported",
                          first->name, first->n_dims);
    if (first->type > SL_STORAGE_BF16)
        return sl_err_set(err, SL_SPEC,
                          "tensor '%s' is a %s; FloatStorage, HalfStorage and BFloat16Storage are "
                          "supported",
                          first->name, sl_storage_info(first->type)->name);
    p->dtype = first->type == SL_STORAGE_F32   ? SL_DT_F32
               : first->type == SL_STORAGE_F16 ? SL_DT_F16
                                               : SL_DT_BF16;
    p->element = (size_t)sl_storage_info(first->type)->bytes;
    rc = keep(n, (size_t)n->tp * sizeof *p->part, &list, err);
    p->part = list;
    for (int t = 0; t < n->tp && !rc; t++) {
        const struct sl_torch_tensor *one = sl_torch_find(n->rank[stage * n->tp + t], first->name);
        void *copy = NULL;

        if (!one || one->type != first->type || one->n_dims != first->n_dims ||
            memcmp(one->dim, first->dim, sizeof one->dim) != 0)
            return sl_err_set(err, SL_DATA,
                              "tensor '%s' of tensor rank %d is not as that of rank 0", first->name,
                              t);
        p->part[t] = one->data;
        if (one->contiguous)
            continue;
        rc = keep(n, (size_t)sl_torch_elements(one) * p->element, &copy, err);
        if (!rc)
            sl_torch_gather(one, copy);
        p->part[t] = copy;
    }
    return rc;
}

/* Adds the tensor; the layout is left out where there is nothing to lay out. first_row: of each
 * part. */
static int add_laid_out(struct nemo *n, struct sl_weights *w, struct sl_tensor *t,
                        const struct sl_layout *layout, const struct pieces *p, int64_t first_row,
                        struct sl_err *err)
{
    int64_t row_elements = layout->split == SL_SPLIT_ELEMENTS ? 1 : p->cols;
    size_t skip = (size_t)(first_row * row_elements) * p->element;
    void *memory = NULL;
    int rc;

    t->dtype = p->dtype;
    if (layout->n_parts == 1 && layout->plus == 0 && layout->block_rows == layout->block_step) {
        t->data = p->part[0] + skip;
        return sl_weights_add(w, t, err);
    }
    rc = keep(n, sizeof *layout + (size_t)layout->n_parts * sizeof *layout->part, &memory, err);
    if (rc)
        return rc;
    struct sl_layout *l = memory;
    const unsigned char **part = (const unsigned char **)(l + 1);

    *l = *layout;
    l->part = part;
    for (int i = 0; i < layout->n_parts; i++)
        part[i] = p->part[i] + skip;
    t->layout = l;
    return sl_weights_add(w, t, err);
}

/* Query, key and value out of one weight or bias. */
static int add_fused(struct nemo *n, struct sl_weights *w, const struct pieces *p, int layer,
                     bool bias, struct sl_err *err)
{
    const struct sl_arch *a = &w->arch;
    int64_t d = a->head_dim, heads = a->heads / n->tp, along = bias ? p->cols : p->rows;
    int rc = 0;

    if (a->heads % n->tp || along != 3 * heads * d || bias != (p->first->n_dims == 1))
        return sl_err_set(err, SL_DATA,
                          "tensor '%s' is not of 3 x %d heads x %lld over %d tensor ranks",
                          p->first->name, a->heads, (long long)d, n->tp);
    for (int k = 0; k < 3 && !rc; k++) {
        struct sl_layout l = {.split = bias ? SL_SPLIT_ELEMENTS : SL_SPLIT_ROWS,
                              .n_parts = n->tp,
                              .part_rows = heads * d,
                              .block_rows = n->legacy ? heads * d : d,
                              .block_step = n->legacy ? heads * d : 3 * d};
        struct sl_tensor t = {.rows = bias ? 1 : a->heads * d,
                              .cols = bias ? a->heads * d : p->cols};

        snprintf(t.name, sizeof t.name, "layers.%d.%c%s", layer, "qkv"[k], bias ? ".bias" : "");
        rc = add_laid_out(n, w, &t, &l, p, k * (n->legacy ? heads * d : d), err);
    }
    return rc;
}

/* The same on every rank, which a damaged archive would not be. */
static int check_same(const struct nemo *n, const struct pieces *p, struct sl_err *err)
{
    for (int t = 1; t < n->tp; t++)
        if (memcmp(p->part[t], p->part[0], (size_t)sl_torch_elements(p->first) * p->element) != 0)
            return sl_err_set(err, SL_DATA,
                              "tensor '%s' of tensor rank %d differs from that of rank 0",
                              p->first->name, t);
    return 0;
}

static int add_named(struct nemo *n, struct sl_weights *w, const struct rename *found, int layer,
                     const struct pieces *p, struct sl_err *err)
{
    bool vocab = !strcmp(found->ours, "embed") || !strcmp(found->ours, "head"),
         vector = p->rows == 1;
    struct sl_tensor t = {.rows = p->rows, .cols = p->cols};
    struct sl_layout l = {.split = SL_SPLIT_ROWS, .n_parts = 1};
    int rc = 0;

    if (layer < 0)
        snprintf(t.name, sizeof t.name, "%s", found->ours);
    else
        snprintf(t.name, sizeof t.name, "layers.%d.%s", layer, found->ours);
    if (found->how == SAME) {
        l.plus = found->norm && n->plus_one ? 1.0f : 0.0f;
        rc = check_same(n, p, err);
    } else if (found->how == BY_COLS) {
        l.split = SL_SPLIT_COLS;
        l.n_parts = n->tp;
        t.cols *= n->tp;
    } else {
        bool elements = vector && p->first->n_dims == 1;

        l.split = elements ? SL_SPLIT_ELEMENTS : SL_SPLIT_ROWS;
        l.n_parts = n->tp;
        *(elements ? &t.cols : &t.rows) *= n->tp;
    }
    l.part_rows = l.split == SL_SPLIT_ELEMENTS ? p->cols : p->rows;
    l.block_rows = l.block_step = l.part_rows;
    if (vocab && w->arch.vocab > t.rows)
        return sl_err_set(err, SL_DATA, "tensor '%s' has %lld rows, the tokenizer %d tokens",
                          p->first->name, (long long)t.rows, w->arch.vocab);
    if (vocab && !w->arch.vocab && t.rows <= SL_MAX_VOCAB)
        w->arch.vocab = (int)t.rows;
    if (vocab) {
        w->arch.padding_rows = (int)(t.rows - w->arch.vocab);
        t.rows = w->arch.vocab;
    }
    return rc ? rc : add_laid_out(n, w, &t, &l, p, 0, err);
}

/* Cuts "model." and what half-precision training puts behind it. NULL: no part of the model. */
static const char *inner_name(const char *name)
{
    static const char model[] = "model.", module[] = "module.", language[] = "language_model.";

    if (!strncmp(name, model, strlen(model)))
        name += strlen(model);
    while (!strncmp(name, module, strlen(module)))
        name += strlen(module);
    return strncmp(name, language, strlen(language)) ? NULL : name + strlen(language);
}

static bool is_repeated_embedding(const char *name)
{
    const char *tail = strstr(name, "word_embeddings.weight");

    return tail && !inner_name(name) && !strcmp(tail, "word_embeddings.weight") &&
           (tail == name || tail[-1] == '.');
}

/* ret_layers: how many layers the stage has. */
static int add_tensor(struct nemo *n, struct sl_weights *w, int stage, int first_layer,
                      const struct sl_torch_tensor *from, int *ret_layers, struct sl_err *err)
{
    const char *name = inner_name(from->name);
    const struct rename *found = NULL;
    struct pieces p;
    int layer = -1, used = 0, rc;

    if (n->pp > 1 && stage == n->pp - 1 && is_repeated_embedding(from->name))
        return 0;
    if (name && sscanf(name, "encoder.layers.%4d.%n", &layer, &used) == 1 && used > 0 && layer >= 0)
        found = find_name(layer_names, sizeof layer_names / sizeof *layer_names, name + used);
    else if (name)
        found = find_name(model_names, sizeof model_names / sizeof *model_names, name);
    if (!found && !strncmp(from->name, "prompt_table.", 13))
        return sl_err_set(err, SL_SPEC,
                          "a NeMo archive of prompt tables, not of a base model: give it as "
                          "model.restore_path, or to generate as --prompts");
    if (!found)
        return sl_err_set(err, SL_SPEC,
                          "tensor '%s' belongs to no supported form of NeMo's GPT (learned "
                          "positions, layernorm, GELU; not Megatron Core)",
                          from->name);
    rc = gather_pieces(n, stage, from, &p, err);
    if (!used)
        return rc ? rc : add_named(n, w, found, -1, &p, err);
    if (layer >= *ret_layers)
        *ret_layers = layer + 1;
    if (!rc && found->how == FUSED)
        return add_fused(n, w, &p, first_layer + layer, found->ours[0] == '.', err);
    return rc ? rc : add_named(n, w, found, first_layer + layer, &p, err);
}

static int add_stages(struct nemo *n, struct sl_weights *w, struct sl_err *err)
{
    int layers = 0, rc = 0;

    for (int stage = 0; stage < n->pp && !rc; stage++) {
        const struct sl_torch *first = n->rank[stage * n->tp];
        int here = 0;

        for (int t = 1; t < n->tp; t++)
            if (sl_torch_count(n->rank[stage * n->tp + t]) != sl_torch_count(first))
                return sl_err_set(
                    err, SL_DATA, "tensor rank %d of stage %d has %d tensors, rank 0 %d", t, stage,
                    sl_torch_count(n->rank[stage * n->tp + t]), sl_torch_count(first));
        for (int i = 0; i < sl_torch_count(first) && !rc; i++)
            rc = add_tensor(n, w, stage, layers, sl_torch_at(first, i), &here, err);
        layers += here;
    }
    if (!rc && layers != w->arch.layers)
        rc = sl_err_set(err, SL_DATA, "%d layers in the weights, num_layers is %d", layers,
                        w->arch.layers);
    return rc;
}

/* ---- the format ---- */

static bool probe(const unsigned char *head, size_t len)
{
    return (len > 262 && !memcmp(head + 257, "ustar", 5)) ||
           (len > 2 && head[0] == 0x1f && head[1] == 0x8b);
}

/* The vocabulary is what the tokenizer has; without one, the rows as they are stored. */
static int count_vocab(struct nemo *n, struct sl_arch *a, struct sl_err *err)
{
    struct sl_err why = SL_ERR_INIT;
    struct sl_tokenizer *tok = NULL;
    int rc = sl_nemo_tokenizer(&n->tar, n->config, &tok, &why);

    if (rc == SL_DATA || rc == SL_NOMEM)
        return sl_err_set(err, rc, "%s", why.msg);
    a->vocab = rc ? 0 : sl_tokenizer_vocab(tok);
    sl_tokenizer_free(tok);
    return 0;
}

static int open_nemo(struct sl_weights *w, const char *path, struct sl_err *err)
{
    struct nemo *n = calloc(1, sizeof *n);
    const char *norm;
    int rc;

    if (!n)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    w->impl = n;
    rc = sl_tar_open(path, &n->tar, err);
    if (!rc)
        rc = sl_nemo_config(&n->tar, &n->config, err);
    if (!rc)
        rc = sl_nemo_arch(n->config, &w->arch, err);
    if (rc)
        return rc;
    norm = sl_json_str(n->config, "normalization", "");
    n->plus_one = !strcmp(norm, "layernorm1p");
    n->legacy = sl_json_bool(n->config, "megatron_legacy", false);
    rc = open_ranks(n, err);
    if (!rc && n->pp > 1 && sl_json_int(n->config, "virtual_pipeline_model_parallel_size", 1) > 1)
        rc = sl_err_set(err, SL_SPEC,
                        SL_NEMO_CONFIG ": virtual_pipeline_model_parallel_size: "
                                       "interleaved layers are not supported");
    if (!rc)
        rc = count_vocab(n, &w->arch, err);
    if (!rc)
        rc = add_stages(n, w, err);
    if (rc)
        return rc;
    w->arch.tied = true;
    for (int i = 0; i < w->n_tensors; i++)
        if (!strcmp(w->tensors[i].name, "head"))
            w->arch.tied = false;
    if (w->arch.tied && !sl_json_bool(n->config, "share_embeddings_and_output_weights", true))
        return sl_err_set(err, SL_DATA,
                          "weight 'output_layer.weight' is missing, and "
                          "share_embeddings_and_output_weights is false");
    return 0;
}

static void close_nemo(void *impl)
{
    struct nemo *n = impl;

    if (!n)
        return;
    for (int i = 0; n->rank && i < n->tp * n->pp; i++)
        sl_torch_close(n->rank[i]);
    for (int i = 0; i < n->n_blocks; i++)
        free(n->block[i]);
    free(n->block);
    free(n->rank);
    json_decref(n->config);
    sl_tar_close(&n->tar);
    free(n);
}

static int tokenizer(const void *impl, struct sl_tokenizer **ret_tok, struct sl_err *err)
{
    const struct nemo *n = impl;

    return sl_nemo_tokenizer(&n->tar, n->config, ret_tok, err);
}

static void forget(const void *impl)
{
    sl_map_forget(&((const struct nemo *)impl)->tar.map);
}

const struct sl_format sl_format_nemo = {"NeMo", probe, open_nemo, close_nemo, tokenizer, forget};

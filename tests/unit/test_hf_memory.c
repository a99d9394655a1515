/* What loading a base model costs in memory. */
#include "tests/unit/hf_make.h"
#include <sys/resource.h>
#include <sys/wait.h>

static int64_t peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}

/* Loads and hashes in this process; writes how far its memory went up, in bytes, over the weights'.
 */
static void load_in_child(const char *dir, int to)
{
    struct sl_err err = SL_ERR_INIT;
    struct sl_backend *be;
    struct sl_weights *w;
    struct sl_model *model;
    char hex[SL_SHA256_HEX + 1];
    int64_t before = peak_bytes();
    if (sl_cpu_ops.open(&(struct sl_backend_opts){.threads = 1}, &be, &err) ||
        sl_weights_open(dir, &w, &err) || sl_weights_digest(w, hex, &err) ||
        sl_model_new(w, &sl_cpu_ops, be, &model, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        _exit(1);
    }
    int64_t over = peak_bytes() - before - sl_model_weight_bytes(model);
    _exit(write(to, &over, sizeof over) == sizeof over ? 0 : 1);
}

/* Loading takes the weights once, and of the file what is being read: not the file beside them. */
static void test_memory_of_loading(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* memory of its own */
#endif
    enum { LAYERS = 12, HIDDEN = 256, FFN = 4096 };
    static const struct {
        const char *name;
        int rows, cols;
    } parts[] = {{"input_layernorm", HIDDEN, 0},       {"post_attention_layernorm", HIDDEN, 0},
                 {"self_attn.q_proj", HIDDEN, HIDDEN}, {"self_attn.k_proj", HIDDEN, HIDDEN},
                 {"self_attn.v_proj", HIDDEN, HIDDEN}, {"self_attn.o_proj", HIDDEN, HIDDEN},
                 {"mlp.gate_proj", FFN, HIDDEN},       {"mlp.up_proj", FFN, HIDDEN},
                 {"mlp.down_proj", HIDDEN, FFN}};
    static const char config[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 256, \"num_hidden_layers\": 12, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"intermediate_size\": 4096, "
        "\"vocab_size\": 256, \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";
    char dir[] = "/tmp/sl-hf-XXXXXX", path[SL_PATH_MAX];
    int64_t at = (int64_t)(HIDDEN + 1) * HIDDEN * 2, over = 0;
    struct sl_buf header;
    int ends[2], status;
    assert_non_null(mkdtemp(dir));
    sl_buf_init(&header, 1 << 20);
    sl_buf_addf(&header, "{\"embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[256,256],"
                         "\"data_offsets\":[0,131072]},\"norm.weight\":{\"dtype\":\"BF16\","
                         "\"shape\":[256],\"data_offsets\":[131072,131584]}");
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            int64_t n = (int64_t)parts[i].rows * (parts[i].cols ? parts[i].cols : 1) * 2;
            char cols[16] = "";
            if (parts[i].cols)
                snprintf(cols, sizeof cols, ",%d", parts[i].cols);
            sl_buf_addf(&header,
                        ",\"layers.%d.%s.weight\":{\"dtype\":\"BF16\",\"shape\":[%d%s],"
                        "\"data_offsets\":[%lld,%lld]}",
                        l, parts[i].name, parts[i].rows, cols, (long long)at, (long long)(at + n));
            at += n;
        }
    assert_int_equal(sl_buf_adds(&header, "}"), 0);
    hm_put_file(dir, "config.json", config, strlen(config));
    hm_put_safetensors(dir, "model.safetensors", header.p, header.len, NULL);
    assert_int_equal(sl_path(path, NULL, "%s/model.safetensors", dir), 0);
    assert_int_equal(truncate(path, 8 + (int64_t)header.len + at), 0);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        load_in_child(dir, ends[1]);
    close(ends[1]);
    assert_int_equal(read(ends[0], &over, sizeof over), sizeof over);
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    print_message("a file of %.1f MiB: %.1f MiB more than the weights\n", (double)at / (1 << 20),
                  (double)over / (1 << 20));
    assert_true(over < at / 4);
    assert_int_equal(sl_rmtree(dir, NULL), 0);
    sl_buf_release(&header);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_of_loading)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

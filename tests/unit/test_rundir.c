/* A run's folder: what a worker says of its inputs is told in the spec's names. */
#include "agent/rundir.h"
#include "base/json.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
/* after the headers that it needs */
#include <cmocka.h>

static void test_inputs_are_named_as_in_the_spec(void **state)
{
    static const char spec[] =
        "{\"model\": {\"ref\": \"tiny:v3\", \"sha256\": \"00\"}, "
        "\"config\": {\"model\": {\"restore_path\": \"first:v0\"}}, \"datasets\": "
        "{\"train\": [\"words:latest/train.jsonl\", \"http://h/more\"]}}";
    static const char *const cases[][2] = {
        {"/w/runs/r-1/inputs/train-0.jsonl:417: not valid JSON",
         "words:latest/train.jsonl:417: not valid JSON"},
        {"model /w/runs/r-1/inputs/model: truncated", "model tiny:v3: truncated"},
        {"/w/runs/r-1/inputs/model/config.json: no", "tiny:v3/config.json: no"},
        {"/w/runs/r-1/inputs/train-1.jsonl and /w/runs/r-1/inputs/train-0.jsonl",
         "http://h/more and words:latest/train.jsonl"},
        {"/w/runs/r-1/inputs/restore: no table", "first:v0: no table"},
        {"/w/runs/r-1/inputs/train-2.jsonl", "/w/runs/r-1/inputs/train-2.jsonl"},
        {"/w/runs/r-2/inputs/model", "/w/runs/r-2/inputs/model"},
        {"writing /w/runs/r-1/checkpoint.tmp: No space left on device",
         "writing /w/runs/r-1/checkpoint.tmp: No space left on device"},
        {"", ""},
    };
    struct sl_rundir dir = {.path = "/w/runs/r-1", .lock_fd = -1};
    struct sl_claim claim = {0};
    char text[128], small[40] = "/w/runs/r-1/inputs/train-0.jsonl:1";

    (void)state;
    assert_int_equal(sl_json_parse(spec, strlen(spec), "spec", &claim.spec, NULL), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "%s", cases[i][0]);
        sl_rundir_name_sources(&dir, &claim, text, sizeof text);
        assert_string_equal(text, cases[i][1]);
    }
    sl_rundir_name_sources(&dir, &claim, small, 20); /* would not fit */
    assert_string_equal(small, "/w/runs/r-1/inputs/train-0.jsonl:1");
    json_decref(claim.spec);
    claim.spec = NULL;
    snprintf(text, sizeof text, "%s", cases[0][0]);
    sl_rundir_name_sources(&dir, &claim, text, sizeof text); /* of a run that is over */
    assert_string_equal(text, cases[0][0]);
}

/* An agent that starts cleans up while another one begins runs: it never takes a folder that is about to be used. */
static void test_cleaning_takes_no_live_folder(void **state)
{
    char work[] = "/tmp/sl-rundir-XXXXXX", run[SL_ID_HEX + 1], path[SL_PATH_MAX];
    int status, failed = 0, taken = 0;
    pid_t pid;

    (void)state;
    assert_non_null(mkdtemp(work));
    assert_int_equal(sl_rundir_clean(work, NULL), 0);
    pid = fork();
    if (pid == 0)
        for (;;)
            sl_rundir_clean(work, NULL);
    for (int i = 0; i < 3000; i++) {
        struct sl_rundir dir;

        sl_random_id(run);
        if (sl_rundir_make(work, run, run, &dir, NULL)) {
            failed++;
            continue;
        }
        assert_int_equal(sl_path(path, NULL, "%s/inputs", dir.path), 0);
        taken += access(path, F_OK) != 0;
        sl_rundir_remove(&dir);
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    sl_rmtree(work, NULL);
    assert_int_equal(failed, 0);
    assert_int_equal(taken, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inputs_are_named_as_in_the_spec),
        cmocka_unit_test(test_cleaning_takes_no_live_folder),
    };
    return cmocka_run_group_tests_name("run directory", tests, NULL, NULL);
}

#include "agent/device_test.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/proc.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER_MAX (1u << 16)

/* What it prints, until it closes its end or the time is over: then it is killed. True: in time. */
static bool read_answer(int fd, pid_t pid, struct sl_buf *text, int *ret_status)
{
    int64_t end_us = sl_boot_us() + SL_DEVICE_TEST_MS * INT64_C(1000), left_us;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    bool open = true;
    char data[4096];

    while (open && (left_us = end_us - sl_boot_us()) > 0) {
        ssize_t n = poll(&p, 1, (int)(left_us / 1000) + 1) > 0 ? read(fd, data, sizeof data) : -2;

        if (n > 0)
            sl_buf_add(text, data, (size_t)n);
        else if (n == 0 || (n == -1 && errno != EINTR))
            open = false;
    }
    if (open)
        kill(pid, SIGKILL);
    while (waitpid(pid, ret_status, 0) < 0 && errno == EINTR)
        continue;
    return !open;
}

int sl_device_test(const char *worker, const char *device, const char *visible, json_t **ret_about, struct sl_err *err)
{
    const char *argv[] = {worker, "selftest", "--json", device ? "--device" : NULL, device, NULL};
    char only[256], ended[64];
    const char *env[] = {visible ? only : NULL, NULL};
    struct sl_buf text;
    json_t *about = NULL;
    int ends[2], status = 0, rc = 0;
    bool in_time = false;
    pid_t pid;

    if (pipe(ends))
        return sl_err_errno(err, "pipe");
    snprintf(only, sizeof only, "CUDA_VISIBLE_DEVICES=%s", visible ? visible : "");
    sl_buf_init(&text, ANSWER_MAX);
    struct sl_spawn s = {.argv = argv, .envp = env, .fds = {-1, ends[1], STDERR_FILENO}, .n_fds = 3};
    rc = sl_spawn(&s, &pid, err);
    close(ends[1]);
    if (!rc)
        in_time = read_answer(ends[0], pid, &text, &status);
    close(ends[0]);
    if (!rc && in_time && text.len)
        about = json_loadb(text.p, text.len, 0, NULL);
    sl_buf_release(&text);
    if (rc)
        return rc;
    sl_wait_text(status, ended);
    if (!in_time)
        return sl_err_set(err, SL_DEVICE, "the worker's self-test gave no answer within %d s", SL_DEVICE_TEST_MS / 1000);
    if (!json_is_object(about)) {
        json_decref(about);
        return sl_err_set(err, SL_DEVICE, "the worker's self-test ended with %s", ended);
    }
    *ret_about = about;
    return 0;
}

/* A Redis of the test's own on a unix socket in a temporary folder, appendonly on; stopped by its
 * pid. */
#ifndef SL_TESTS_UNIT_PRIVATE_REDIS_H
#define SL_TESTS_UNIT_PRIVATE_REDIS_H
#include "base/file.h"
#include "base/proc.h"
#include "queue/redis.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct private_redis {
    char dir[64], url[96];
    pid_t pid;
};

static inline int private_redis_ping(struct private_redis *p)
{
    struct sl_redis_url url;
    struct sl_redis *r;
    redisReply *reply;
    struct sl_cmd c;
    int rc = sl_redis_url_parse(p->url, &url, NULL);

    if (rc || sl_redis_new(&url, &r, NULL))
        return -1;
    sl_cmd_init(&c);
    sl_cmd_add(&c, "PING");
    rc = sl_redis_call(r, &c, 0, &reply, NULL);
    if (!rc)
        freeReplyObject(reply);
    sl_cmd_release(&c);
    sl_redis_free(r);
    return rc;
}

static inline int private_redis_launch(struct private_redis *p)
{
    char sock[80];
    snprintf(sock, sizeof sock, "%s/redis.sock", p->dir);
    const char *argv[] = {
        "redis-server", "--port", "0", "--unixsocket", sock,        "--dir", p->dir, "--appendonly",
        "yes",          "--save", "",  "--logfile",    "redis.log", NULL};
    struct sl_spawn s = {.argv = argv, .fds = {-1, -1, -1}, .n_fds = 3};

    if (sl_spawn(&s, &p->pid, NULL))
        return -1;
    for (int i = 0; i < 400; i++) {
        if (!private_redis_ping(p))
            return 0;
        usleep(10000);
    }
    return -1;
}

static inline int private_redis_start(struct private_redis *p)
{
    snprintf(p->dir, sizeof p->dir, "/tmp/sl-redis-XXXXXX");
    if (!mkdtemp(p->dir))
        return -1;
    snprintf(p->url, sizeof p->url, "unix://%s/redis.sock", p->dir);
    return private_redis_launch(p);
}

static inline void private_redis_kill(struct private_redis *p, int signo)
{
    if (p->pid > 0) {
        kill(p->pid, signo);
        waitpid(p->pid, NULL, 0);
    }
    p->pid = 0;
}

static inline void private_redis_stop(struct private_redis *p)
{
    private_redis_kill(p, SIGTERM);
    if (p->dir[0])
        sl_rmtree(p->dir, NULL);
}

#endif

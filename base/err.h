/* Errors.
 *
 * A function that can fail returns 0 or a negative enum sl_code, fills *err (the first error wins; callers
 * wrap it with what they were doing) and leaves every ret_ output untouched. err may be NULL everywhere.
 * The code tells the caller what to do; the message tells a person what, where and what to try. */
#ifndef SL_BASE_ERR_H
#define SL_BASE_ERR_H

#define SL_ERR_MSG_MAX 2048

enum sl_code {
    SL_OK = 0,
    SL_RETRY = -1,     /* passing fault (network, server away): the same call may succeed later */
    SL_LEASE = -2,     /* the lease is lost: stop all work for this run, write nothing more */
    SL_SPEC = -3,      /* what the user asked for is wrong: fail the run for good */
    SL_DEVICE = -4,    /* the accelerator is gone or broken: leave this machine */
    SL_NOMEM = -5,     /* out of host or device memory */
    SL_IO = -6,        /* local file system (disk full, permissions) */
    SL_NOTFOUND = -7,  /* a name that does not exist */
    SL_CONFLICT = -8,  /* exists already, or the state does not allow it */
    SL_DENIED = -9,    /* missing or wrong credentials */
    SL_DATA = -10,     /* bytes that are not what they should be: digest, archive, file format */
    SL_CANCELLED = -11, /* somebody asked us to stop */
    SL_FAULT = -12     /* work on a sound accelerator failed (a bad access): this process can use it no more */
};

struct sl_err {
    int code;
    char msg[SL_ERR_MSG_MAX];
};

#define SL_ERR_INIT {0, ""}

/* Records code and message if err holds no error yet; returns code (always < 0). */
int sl_err_set(struct sl_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* As sl_err_set with ": strerror(errno)" behind the message. ENOMEM becomes SL_NOMEM, else SL_IO. */
int sl_err_errno(struct sl_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts "context: " before the message; returns the code. Use as: return sl_err_wrap(err, rc, "loading %s", p). */
int sl_err_wrap(struct sl_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#if defined __clang_analyzer__ && !defined SL_ERR_IMPLEMENTATION
/* It cannot see that these never return 0, and would follow paths that do not exist. */
#define sl_err_set(err, code, ...) ((sl_err_set)(err, code, __VA_ARGS__), (code))
#define sl_err_errno(...) ((sl_err_errno)(__VA_ARGS__), SL_IO)
#endif
void sl_err_clear(struct sl_err *err);
/* Cuts the incomplete UTF-8 character that a byte limit may have left at the end of a string. */
void sl_utf8_trim(char *s);
/* "retry", "lease_lost", "spec", "device_lost", "out_of_memory", "io", "device_fault", ... : the word used in run causes and events. */
const char *sl_code_name(int code);
/* Inverse of sl_code_name; SL_IO for a word nobody knows. */
int sl_code_from_name(const char *name);

#endif

/* How a command finds its server: --server or SOFTLAUNCH_SERVER, --token-file or SOFTLAUNCH_TOKEN. */
#ifndef SL_CLI_API_H
#define SL_CLI_API_H
#include "artifacts/api.h"
#include "cli/options.h"

#define SL_SERVER_DEFAULT "http://127.0.0.1:8080"

struct cli_server {
    const char *url, *token_file; /* the options' values or NULL */
};
/* Their lines in a command's table. */
#define CLI_SERVER_OPTIONS(s)                                                                      \
    {"server",                                                                                     \
     0,                                                                                            \
     CLI_TEXT,                                                                                     \
     &(s).url,                                                                                     \
     "URL",                                                                                        \
     "default: SOFTLAUNCH_SERVER, else " SL_SERVER_DEFAULT,                                        \
     0,                                                                                            \
     0},                                                                                           \
    {                                                                                              \
        "token-file", 0, CLI_TEXT, &(s).token_file, "FILE", "default: the token in SOFTLAUNCH_TOKEN", 0, 0 \
    }

/* server and token_file are the options' values or NULL. */
int sl_api_open(const char *server, const char *token_file, struct sl_api **ret_api,
                struct sl_err *err);

#endif

/* How a command finds its server: --server or SOFTLAUNCH_SERVER, --token-file or SOFTLAUNCH_TOKEN. */
#ifndef SL_CLI_API_H
#define SL_CLI_API_H
#include "artifacts/api.h"

#define SL_SERVER_DEFAULT "http://127.0.0.1:8080"

/* server and token_file are the options' values or NULL. */
int sl_api_open(const char *server, const char *token_file, struct sl_api **ret_api,
                struct sl_err *err);

#endif

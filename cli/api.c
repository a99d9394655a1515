#include "cli/api.h"
#include "server/http.h"
#include <stdlib.h>
#include <string.h>

int sl_api_open(const char *server, const char *token_file, struct sl_api **ret_api,
                struct sl_err *err)
{
    const char *env = getenv("SOFTLAUNCH_SERVER");
    char *token = NULL;
    if (!server)
        server = env && *env ? env : SL_SERVER_DEFAULT;
    if (token_file) {
        int rc = sl_http_read_token(token_file, &token, err);
        if (rc)
            return rc;
    }
    int rc = sl_api_new(server, token ? token : getenv("SOFTLAUNCH_TOKEN"), ret_api, err);
    free(token);
    return rc;
}

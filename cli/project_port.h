/* `softlaunch projects export PROJECT FILE.tar` and `import FILE.tar`. */
#ifndef SL_CLI_PROJECT_PORT_H
#define SL_CLI_PROJECT_PORT_H
#include "artifacts/api.h"
#include <stdbool.h>

/* Whether argv (a verb and what follows) is one of them. */
bool project_port_knows(int argc, char **argv);
int project_port(struct sl_api *api, int argc, char **argv, bool json, struct sl_err *err);

#endif

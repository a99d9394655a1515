/* What the reader and the writer of safetensors.h agree on. */
#ifndef SL_ENGINE_SAFETENSORS_SEAL_H
#define SL_ENGINE_SAFETENSORS_SEAL_H
#include "engine/format/safetensors.h"

#define SL_ST_LENGTH_BYTES 8 /* of the header's length, in front of it */
#define SL_ST_SEAL_KEY "\"seal\":\""
/* What stands in a seal's place while it is taken. */
#define SL_ST_NO_SEAL "0000000000000000000000000000000000000000000000000000000000000000"

#endif

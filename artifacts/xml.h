/* Reads the XML that S3 and STS answer with. */
#ifndef SL_ARTIFACTS_XML_H
#define SL_ARTIFACTS_XML_H
#include "base/err.h"
#include <stddef.h>

#define SL_XML_DEPTH_MAX 16
#define SL_XML_PATH_MAX 512   /* "ListBucketResult/Contents/Key" */
#define SL_XML_TEXT_MAX 16384 /* of one element */

/* Calls on at the end of each element with the names from the root down to it and the text in it.
 * on returns 0, or an error that ends the reading. SL_DATA: no well-formed XML, a document type
 * (there is none in these answers, and it could define entities), or over a limit. */
int sl_xml_each(const char *xml, size_t len, const char *what,
                int (*on)(void *arg, const char *path, const char *text), void *arg,
                struct sl_err *err);

#endif

#include "artifacts/xml.h"
#include "base/buf.h"
#include <expat.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct reading {
    XML_Parser parser;
    int (*on)(void *arg, const char *path, const char *text);
    void *arg;
    char path[SL_XML_PATH_MAX];
    size_t ends[SL_XML_DEPTH_MAX]; /* lengths of path, by depth */
    int depth, rc;
    const char *fault;
    struct sl_buf text;
};

static void stop(struct reading *r, const char *fault)
{
    if (!r->fault && !r->rc)
        r->fault = fault;
    XML_StopParser(r->parser, XML_FALSE);
}

static void on_start(void *arg, const char *name, const char **attributes)
{
    struct reading *r = arg;
    size_t at = r->depth ? r->ends[r->depth - 1] : 0;
    (void)attributes;
    if (r->depth == SL_XML_DEPTH_MAX || at + strlen(name) + 2 > sizeof r->path) {
        stop(r, "elements too deep, or their names too long");
        return;
    }
    r->ends[r->depth] =
        at + (size_t)snprintf(r->path + at, sizeof r->path - at, "%s%s", r->depth ? "/" : "", name);
    r->depth++;
    sl_buf_reset(&r->text);
}

static void on_end(void *arg, const char *name)
{
    struct reading *r = arg;
    (void)name;
    if (r->fault || r->rc || r->depth == 0)
        return;
    r->rc = r->on(r->arg, r->path, r->text.p);
    r->depth--;
    r->path[r->depth ? r->ends[r->depth - 1] : 0] = 0;
    sl_buf_reset(&r->text);
    if (r->rc)
        stop(r, NULL);
}

static void on_text(void *arg, const char *text, int len)
{
    struct reading *r = arg;
    if (sl_buf_add(&r->text, text, (size_t)len))
        stop(r, "an element with too much text");
}

static void on_doctype(void *arg, const char *name, const char *system, const char *public, int sub)
{
    (void)name;
    (void)system;
    (void)public;
    (void)sub;
    stop(arg, "a document type");
}

int sl_xml_each(const char *xml, size_t len, const char *what,
                int (*on)(void *arg, const char *path, const char *text), void *arg,
                struct sl_err *err)
{
    struct reading r = {.on = on, .arg = arg, .parser = XML_ParserCreate(NULL)};
    if (!r.parser)
        return sl_err_set(err, SL_NOMEM, "out of memory");
    sl_buf_init(&r.text, SL_XML_TEXT_MAX);
    XML_SetUserData(r.parser, &r);
    XML_SetElementHandler(r.parser, on_start, on_end);
    XML_SetCharacterDataHandler(r.parser, on_text);
    XML_SetStartDoctypeDeclHandler(r.parser, on_doctype);
    enum XML_Status status =
        len > INT32_MAX ? XML_STATUS_ERROR : XML_Parse(r.parser, xml, (int)len, XML_TRUE);
    int rc = r.rc;
    if (rc == 0 && status != XML_STATUS_OK)
        rc = sl_err_set(err, SL_DATA, "%s: the answer is not the XML it should be: %s", what,
                        r.fault ? r.fault : XML_ErrorString(XML_GetErrorCode(r.parser)));
    XML_ParserFree(r.parser);
    sl_buf_release(&r.text);
    return rc;
}

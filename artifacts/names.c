#include "artifacts/names.h"
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#define VERSION_DIGITS_MAX 9

bool sl_name_valid(const char *name)
{
    if (!name || !*name)
        return false;
    size_t n = 0;
    for (const char *p = name; *p; p++, n++) {
        bool alnum = (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9');
        if (!alnum && (n == 0 || (*p != '.' && *p != '_' && *p != '-')))
            return false;
        if (n >= SL_NAME_MAX)
            return false;
    }
    return true;
}

int sl_version_number(const char *version)
{
    if (!version || version[0] != 'v')
        return -1;
    const char *digits = version + 1;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || digits[n] || n > VERSION_DIGITS_MAX || (digits[0] == '0' && n > 1))
        return -1;
    return atoi(digits);
}

bool sl_alias_valid(const char *alias)
{
    if (!sl_name_valid(alias) || strcmp(alias, "latest") == 0)
        return false;
    /* Anything like "v12" or "v007" would be taken for a version by a reader. */
    return !(alias[0] == 'v' && alias[1] && strspn(alias + 1, "0123456789") == strlen(alias + 1));
}

/* Length of the UTF-8 sequence at p, 0 when it is malformed, overlong or a surrogate. */
static size_t utf8_len(const unsigned char *p)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        return (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if ((p[0] & 0xf0) == 0xe0) {
        if ((p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80)
            return 0;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0))
            return 0;
        return 3;
    }
    if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        if ((p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80)
            return 0;
        if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))
            return 0;
        return 4;
    }
    return 0;
}

bool sl_entry_path_valid(const char *path)
{
    if (!path || !*path)
        return false;
    int depth = 1;
    const char *part = path;
    for (const char *p = path;; p++) {
        if (*p == '/' || !*p) {
            size_t len = (size_t)(p - part);
            if (len == 0 || (len == 1 && part[0] == '.') ||
                (len == 2 && part[0] == '.' && part[1] == '.'))
                return false;
            if (!*p)
                return (size_t)(p - path) <= SL_ENTRY_PATH_MAX && depth <= SL_ENTRY_DEPTH_MAX;
            part = p + 1;
            depth++;
            continue;
        }
        unsigned char c = (unsigned char)*p;
        size_t n = utf8_len((const unsigned char *)p);
        if (c < 0x20 || c == 0x7f || c == '\\' || n == 0)
            return false;
        p += n - 1;
    }
}

int sl_ref_check_project(const struct sl_ref *ref, const char *found, struct sl_err *err)
{
    if (!ref->project[0] || (found && strcmp(ref->project, found) == 0))
        return 0;
    return sl_err_set(err, SL_NOTFOUND, "project %s has no artifact %s", ref->project, ref->name);
}

/* The length of "project" in "project/name:version"; 0: it is none. */
static size_t project_len(const char *text)
{
    size_t slash = strcspn(text, "/:"), rest = text[slash] == '/' ? strcspn(text + slash + 1, "/:") : 0;
    char project[SL_NAME_MAX + 1], name[SL_NAME_MAX + 1];
    if (!rest || text[slash + 1 + rest] != ':' || slash >= sizeof project || rest >= sizeof name)
        return 0;
    snprintf(project, sizeof project, "%.*s", (int)slash, text);
    snprintf(name, sizeof name, "%.*s", (int)rest, text + slash + 1);
    return sl_name_valid(project) && sl_name_valid(name) ? slash : 0;
}

int sl_ref_parse(const char *text, struct sl_ref *ret_ref, struct sl_err *err)
{
    struct sl_ref ref = {.version = "latest"};
    size_t project = project_len(text);
    if (project) {
        memcpy(ref.project, text, project);
        text += project + 1;
    }
    size_t head = strcspn(text, "/");
    size_t name_len = strcspn(text, ":/");
    if (name_len >= sizeof ref.name || head - name_len > sizeof ref.version)
        return sl_err_set(err, SL_SPEC, "artifact reference is too long: %.200s", text);
    memcpy(ref.name, text, name_len);
    if (!sl_name_valid(ref.name))
        return sl_err_set(
            err, SL_SPEC,
            "`%.200s` is not an artifact reference: a name is 1 to %d of a-z 0-9 . _ - and "
            "starts with a letter or digit; write name, name:v3 or name:alias, "
            "and /file behind it for one file",
            text, SL_NAME_MAX);
    if (text[name_len] == ':') {
        size_t len = head - name_len - 1;
        memcpy(ref.version, text + name_len + 1, len);
        ref.version[len] = 0;
        if (sl_version_number(ref.version) < 0 && strcmp(ref.version, "latest") != 0 &&
            !sl_alias_valid(ref.version))
            return sl_err_set(err, SL_SPEC,
                              "`%.100s` in `%.200s` is neither a version nor an alias", ref.version,
                              text);
    }
    if (text[head] == '/') {
        const char *file = text + head + 1;
        if (!sl_entry_path_valid(file))
            return sl_err_set(err, SL_SPEC, "`%.200s` does not name a file inside an artifact",
                              text);
        memcpy(ref.file, file, strlen(file) + 1);
    }
    *ret_ref = ref;
    return 0;
}

int sl_ref_pin(const char *text, const char *name, const char *version, char *ret_text, size_t size,
               struct sl_err *err)
{
    struct sl_ref ref;
    int rc = sl_ref_parse(text, &ref, err);
    if (rc)
        return rc;
    if (snprintf(ret_text, size, "%s:%s%s%s", name, version, ref.file[0] ? "/" : "", ref.file) >= (int)size)
        return sl_err_set(err, SL_SPEC, "artifact reference is too long: %.200s", text);
    return 0;
}

#include "server/note.h"
#include "server/http.h"
#include <stdbool.h>
#include <string.h>

#define NOTES_MAX 20000 /* bytes */
#define TAGS_MAX 20
#define TAG_MAX 64 /* bytes */

static bool is_tag(const json_t *tag)
{
    const char *text = json_string_value(tag);
    size_t len = json_string_length(tag);

    if (!text || !len || len > TAG_MAX || strlen(text) != len)
        return false;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] <= ' ' || text[i] == ',' || text[i] == 0x7f)
            return false;
    return true;
}

/* Each tag once. New reference, NULL: there are none given. */
static json_t *read_tags(const json_t *given, json_t *errors)
{
    json_t *tags = json_array(), *tag, *seen = json_object();
    size_t i;
    bool good = json_is_array(given) && json_array_size(given) <= TAGS_MAX;

    json_array_foreach(good ? given : NULL, i, tag) {
        good &= is_tag(tag);
        if (good && !json_object_get(seen, json_string_value(tag))) {
            json_object_set_new(seen, json_string_value(tag), json_true());
            json_array_append(tags, tag);
        }
    }
    if (!good)
        sl_http_complain(errors, "tags", "expected at most 20 texts of 1 to 64 bytes without blanks and commas");
    json_decref(seen);
    return tags;
}

void sl_note_read(const json_t *body, const json_t **ret_notes, json_t **ret_tags, json_t *errors)
{
    const json_t *notes = json_object_get(body, "notes"), *tags = json_object_get(body, "tags");

    if (notes && (!json_is_string(notes) || json_string_length(notes) > NOTES_MAX ||
                  strlen(json_string_value(notes)) != json_string_length(notes)))
        sl_http_complain(errors, "notes", "expected a text of at most 20000 bytes");
    *ret_notes = notes;
    *ret_tags = tags ? read_tags(tags, errors) : NULL;
}

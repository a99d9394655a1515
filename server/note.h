/* What people write about a run: notes and tags, as a body brings them. */
#ifndef SL_SERVER_NOTE_H
#define SL_SERVER_NOTE_H
#include <jansson.h>

/* Either is NULL where body lacks it. *ret_notes is borrowed; *ret_tags, each once, is a new reference. What is wrong is
 * appended to errors. */
void sl_note_read(const json_t *body, const json_t **ret_notes, json_t **ret_tags, json_t *errors);

#endif

/* Who did what: one JSON line for each change that somebody asked for, and for what was refused.
 *
 *   DATA/audit/00000001.jsonl, 00000002.jsonl, ...   a new file when one has SL_AUDIT_FILE_BYTES
 *
 * Lines are only ever appended, and files never removed here. sl_audit_add returns when the line is
 * on the disk; callers at the same time share one sync. A line that a power cut tore is cut off by
 * the next open. May be called from any thread. */
#ifndef SL_SERVER_AUDIT_H
#define SL_SERVER_AUDIT_H
#include "base/err.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_AUDIT_FILE_BYTES (16u << 20)
#define SL_AUDIT_LINE_MAX 8192
#define SL_AUDIT_PAGE_MAX 500

struct sl_audit;

int sl_audit_open(const char *data_dir, struct sl_audit **ret_audit, struct sl_err *err);
void sl_audit_close(struct sl_audit *a); /* NULL-safe */
/* synced false: leaves the line to the system's next write, and does not block on the disk. */
int sl_audit_add(struct sl_audit *a, const json_t *entry, bool synced, struct sl_err *err);
/* Newest first, at most `most`, of one user when that is given. cursor: an earlier page's, NULL for
 * the newest. *ret_next: the cursor of the next page, 40 bytes, "" when there is none; a page with
 * few entries may have a next one, since a call looks at a bounded number of lines. SL_SPEC: not a
 * cursor. */
int sl_audit_read(struct sl_audit *a, const char *cursor, int most, const char *user,
                  json_t **ret_entries, char ret_next[40], struct sl_err *err);

#endif

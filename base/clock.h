/* Clocks and random names. */
#ifndef SL_BASE_CLOCK_H
#define SL_BASE_CLOCK_H
#include <stdint.h>
#include <stdio.h>

#define SL_ID_HEX 32 /* 128 random bits */

int64_t sl_now_us(void);  /* wall clock, microseconds since 1970; may step */
int64_t sl_boot_us(void); /* boot-time clock, microseconds; counts suspend, never steps: for deadlines */
/* 32 lower-case hex digits from the kernel's random source, NUL-terminated. */
void sl_random_id(char ret_id[SL_ID_HEX + 1]);
/* "2026-01-02T03:04:05.678Z" */
void sl_format_time(int64_t wall_us, char ret_text[32]);

#endif

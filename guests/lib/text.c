/* SPDX-License-Identifier: Apache-2.0
 * Text to the console, in pieces if it is long. */
#include "text.h"

static void say(const char *text, size_t bytes, uint32_t bell)
{
#if __STDC_HOSTED__
    /* The monitor prints what lies in private memory. A program's heap and stack do not, nor does the window. */
    static char copy[PF_LOG_MAX];
    text = memcpy(copy, text, bytes);
#endif
    PF->log_gpa = (uintptr_t)text;
    PF->log_length = (uint32_t)bytes;
    pf_ring(bell);
}

/* How much of a text one doorbell takes: all, or else whole lines, or else whole characters of UTF-8. */
static size_t piece(const char *text, size_t bytes)
{
    if (bytes <= PF_LOG_MAX)
        return bytes;
    for (size_t n = PF_LOG_MAX; n; n--)
        if (text[n - 1] == '\n')
            return n;
    for (size_t n = PF_LOG_MAX; n > PF_LOG_MAX - 4; n--)
        if ((text[n] & 0xc0) != 0x80)
            return n;
    return PF_LOG_MAX; /* not UTF-8 */
}

void pf_panic(const char *text)
{
    size_t bytes = strlen(text);

    for (;;)
        say(text, piece(text, bytes), PF_BELL_PANIC);
}

int pf_log_piece(const char *text, size_t *bytes)
{
    *bytes = piece(text, *bytes);
    say(text, *bytes, PF_BELL_LOG);
    return PF->bell_status;
}

int pf_log(const char *text)
{
    size_t left = strlen(text);

    for (;;) {
        size_t part = left;
        int status = pf_log_piece(text, &part);
        left -= part;
        text += part;
        if (status != PF_OK || !left)
            return status;
    }
}

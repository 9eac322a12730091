/* SPDX-License-Identifier: Apache-2.0
 * Text to the console, in pieces if it is long, and printf. */
#include "format.h"
#include "pf.h"

static void say(const char *text, size_t bytes, uint32_t bell)
{
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

static int log_piece(const char *text, size_t *bytes)
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
        int status = log_piece(text, &part);
        left -= part;
        text += part;
        if (status != PF_OK || !left)
            return status;
    }
}

/* ---- printf ---- */

/* What has been put and not been said. Not on the stack, which may be small; a guest is one thread. */
static struct line {
    struct pf_out out;
    size_t bytes;
    int status;
    char text[PF_LOG_MAX + 1]; /* with one byte more than a piece one sees where to cut */
} line;

static void put_in_line(struct pf_out *out, char c)
{
    (void)out;
    line.text[line.bytes++] = c;
    if (line.bytes < sizeof line.text)
        return;
    size_t part = line.bytes;
    int status = log_piece(line.text, &part);
    if (line.status == PF_OK)
        line.status = status;
    line.bytes -= part;
    memmove(line.text, line.text + part, line.bytes);
}

int pf_vprintf(const char *format, va_list arguments)
{
    line.out.put = put_in_line;
    line.out.count = 0;
    line.bytes = 0;
    line.status = PF_OK;
    pf_format(&line.out, format, arguments);
    int status = log_piece(line.text, &line.bytes);
    return line.status != PF_OK ? line.status : status;
}

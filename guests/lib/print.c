/* SPDX-License-Identifier: Apache-2.0
 * printf to the console. */
#include "format.h"
#include "text.h"

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
    int status = pf_log_piece(line.text, &part);
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
    int status = pf_log_piece(line.text, &line.bytes);
    return line.status != PF_OK ? line.status : status;
}

/* SPDX-License-Identifier: Apache-2.0
 * What a program for Linux has besides pf.c and text.c: the note that makes it a peer, and what its C library does for
 * it. */
#include <stdio.h>
#include <stdlib.h>

#include "pf.h"

/* In assembly, as compilers give a section of C's another type, and linkers make a PT_NOTE of this one only. */
__asm__(".pushsection .note.pageferry, \"a\", @note\n"
        ".balign 4\n"
        ".long 2f - 1f, 4f - 3f, " PF_STRING(PF_NOTE_LINUX) "\n"
        "1: .asciz \"" PF_NOTE_NAME "\"\n"
        "2: .balign 4\n"
        "3: .long " PF_STRING(PF_ABI_MAJOR) ", " PF_STRING(PF_ABI_MINOR) "\n"
        "4:\n"
        ".popsection\n");

void pf_exit(int code)
{
    exit(code);
}

int pf_vprintf(const char *format, va_list arguments)
{
    va_list again;
    int status = PF_E_LENGTH; /* of a format that the C library refuses */

    va_copy(again, arguments);
    int bytes = vsnprintf(NULL, 0, format, arguments);
    if (bytes >= 0) {
        char *text = malloc((size_t)bytes + 1);
        status = PF_E_NO_MEMORY;
        if (text) {
            vsnprintf(text, (size_t)bytes + 1, format, again);
            status = pf_log(text);
        }
        free(text);
    }
    va_end(again);
    return status;
}

int pf_printf(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    int status = pf_vprintf(format, arguments);
    va_end(arguments);
    return status;
}

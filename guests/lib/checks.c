/* SPDX-License-Identifier: Apache-2.0
 * What compilers call instead of memcpy and the like where they check (_FORTIFY_SOURCE), and where they give up. */
#include "pf.h"

void *__memcpy_chk(void *restrict to, const void *restrict from, size_t bytes, size_t room);
void *__memmove_chk(void *to, const void *from, size_t bytes, size_t room);
void *__memset_chk(void *to, int value, size_t bytes, size_t room);
__attribute__((noreturn)) void abort(void);

static void check(size_t bytes, size_t room)
{
    if (bytes > room)
        pf_panic("buffer overflow detected");
}

void *__memcpy_chk(void *restrict to, const void *restrict from, size_t bytes, size_t room)
{
    check(bytes, room);
    return memcpy(to, from, bytes);
}

void *__memmove_chk(void *to, const void *from, size_t bytes, size_t room)
{
    check(bytes, room);
    return memmove(to, from, bytes);
}

void *__memset_chk(void *to, int value, size_t bytes, size_t room)
{
    check(bytes, room);
    return memset(to, value, bytes);
}

void abort(void)
{
    pf_panic("abort");
}

/* SPDX-License-Identifier: Apache-2.0
 * What a freestanding C compiler may call on its own. */
#include "pf.h"

/* `rep movsb` and `rep stosb` rather than loops: a compiler turns a loop here into a call of the function
 * it is in, and on most hosts the string instructions are the fast way as well. */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    void *out = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return out;
}

void *memset(void *to, int value, size_t bytes)
{
    void *out = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return out;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    if ((uintptr_t)to - (uintptr_t)from >= bytes)
        return memcpy(to, from, bytes);
    unsigned char *t = to;
    const unsigned char *f = from;
    while (bytes--) {
        t[bytes] = f[bytes];
        __asm__ volatile("" : : : "memory"); /* keep it a loop */
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes)
{
    const unsigned char *x = a, *y = b;

    for (; bytes; bytes--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

int bcmp(const void *a, const void *b, size_t bytes);
int bcmp(const void *a, const void *b, size_t bytes) /* clang's memcmp, if only equality counts */
{
    return memcmp(a, b, bytes);
}

size_t strlen(const char *text)
{
    const char *end = text;

    while (*end) {
        end++;
        __asm__ volatile("" : : : "memory"); /* keep it a loop */
    }
    return (size_t)(end - text);
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

/* SPDX-License-Identifier: Apache-2.0
 * What a freestanding C compiler may call on its own, and a small printf. */
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

/* ---- printf ---- */

struct line {
    char text[512];
    size_t bytes;
};

static void put(struct line *line, char c)
{
    if (line->bytes < sizeof line->text - 1)
        line->text[line->bytes++] = c;
}

static void put_text(struct line *line, const char *text)
{
    for (; *text; text++)
        put(line, *text);
}

static void put_number(struct line *line, uint64_t value, unsigned base)
{
    char digits[20];
    int n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        put(line, digits[--n]);
}

static void put_signed(struct line *line, int64_t value)
{
    if (value < 0)
        put(line, '-');
    put_number(line, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

static void put_argument(struct line *line, char kind, bool wide, va_list *arguments)
{
    switch (kind) {
    case 'c': put(line, (char)va_arg(*arguments, int)); break;
    case 's': put_text(line, va_arg(*arguments, const char *)); break;
    case 'd': put_signed(line, wide ? va_arg(*arguments, int64_t) : va_arg(*arguments, int)); break;
    case 'u': put_number(line, wide ? va_arg(*arguments, uint64_t) : va_arg(*arguments, unsigned), 10); break;
    case 'x': put_number(line, wide ? va_arg(*arguments, uint64_t) : va_arg(*arguments, unsigned), 16); break;
    case 'p': put_text(line, "0x"); put_number(line, (uintptr_t)va_arg(*arguments, void *), 16); break;
    default: put(line, kind); break;
    }
}

int pf_printf(const char *format, ...)
{
    struct line line;
    va_list arguments;

    line.bytes = 0;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(&line, *format);
            continue;
        }
        bool wide = *++format == 'l';
        if (wide)
            format++;
        if (!*format)
            break;
        put_argument(&line, *format, wide, &arguments);
    }
    va_end(arguments);
    line.text[line.bytes] = 0;
    return pf_log(line.text);
}

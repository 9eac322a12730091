/* SPDX-License-Identifier: Apache-2.0
 * printf's conversions, all that need no locale: reading the format, and taking the arguments. The whole of it is done
 * with integers, so that it needs no SSE: a number in floating point is taken as the bits that it is. */
#include "format.h"

#include <limits.h>

/* ---- Arguments ---- */

/* A va_list, as the System V ABI lays it out (AMD64 supplement, 3.5.7). */
struct __attribute__((may_alias)) arguments {
    uint32_t general, vector; /* how much of the saved registers is used up */
    unsigned char *memory, *registers;
};

#define VECTORS_END 176 /* six general registers of 8 bytes, eight of 16 */

static uint64_t load(const unsigned char *at, int bytes)
{
    uint64_t value = 0;

    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static struct pf_real next_double(struct arguments *next)
{
    bool saved = next->vector < VECTORS_END;
    uint64_t bits = load(saved ? next->registers + next->vector : next->memory, 8);
    int exponent = bits >> 52 & 0x7ff;
    uint64_t fraction = bits & 0xfffffffffffff;

    if (saved)
        next->vector += 16;
    else
        next->memory += 8;
    return (struct pf_real){
        .negative = bits >> 63,
        .infinite = exponent == 0x7ff && !fraction,
        .nan = exponent == 0x7ff && fraction,
        .mantissa = exponent ? fraction | 1ull << 52 : fraction,
        .exponent = (exponent ? exponent : 1) - 1075,
    };
}

static struct pf_real next_long_double(struct arguments *next)
{
    unsigned char *at = next->memory + (-(uintptr_t)next->memory & 15);
    uint64_t mantissa = load(at, 8);
    unsigned top = (unsigned)load(at + 8, 2);
    int exponent = top & 0x7fff;
    bool special = exponent == 0x7fff;

    next->memory = at + 16;
    return (struct pf_real){
        .negative = top >> 15,
        .infinite = special && mantissa << 1 == 0,
        .nan = (special && mantissa << 1) || (exponent && !(mantissa >> 63)), /* and what is no number at all */
        .extended = true,
        .mantissa = mantissa,
        .exponent = (exponent ? exponent : 1) - 16383 - 63,
    };
}

static int64_t next_signed(const struct pf_conversion *how, va_list arguments)
{
    int64_t value = how->bytes == 8 ? va_arg(arguments, int64_t) : va_arg(arguments, int);

    return how->bytes == 1 ? (signed char)value : how->bytes == 2 ? (short)value : value;
}

static uint64_t next_unsigned(const struct pf_conversion *how, va_list arguments)
{
    uint64_t value = how->bytes == 8 ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned);

    return how->bytes == 1 ? (unsigned char)value : how->bytes == 2 ? (unsigned short)value : value;
}

static void store_count(const struct pf_conversion *how, void *at, uint64_t count)
{
    switch (how->bytes) {
    case 1: *(signed char *)at = (signed char)count; break;
    case 2: *(short *)at = (short)count; break;
    case 4: *(int *)at = (int)count; break;
    default: *(int64_t *)at = (int64_t)count; break;
    }
}

/* ---- The format ---- */

static const char *parse_flags(const char *at, struct pf_conversion *how)
{
    for (;; at++) {
        switch (*at) {
        case '-': how->left = true; break;
        case '+': how->plus = true; break;
        case ' ': how->space = true; break;
        case '#': how->alternate = true; break;
        case '0': how->zero = true; break;
        case '\'': case 'I': break; /* a locale's, and of no consequence without one */
        default: return at;
        }
    }
}

/* A number, or the argument that `*` stands for. */
static const char *parse_number(const char *at, int64_t *number, va_list arguments)
{
    if (*at == '*') {
        *number = va_arg(arguments, int);
        return at + 1;
    }
    for (*number = 0; *at >= '0' && *at <= '9'; at++)
        if (*number < INT_MAX)
            *number = *number * 10 + (*at - '0');
    return at;
}

/* C23's w8, w16, w32, w64, and wf8 and so on for the fast ones. */
static const char *parse_bits(const char *at, struct pf_conversion *how)
{
    bool fast = *at == 'f';
    int bits = 0;

    for (at += fast; *at >= '0' && *at <= '9' && bits < 100; at++)
        bits = bits * 10 + (*at - '0');
    how->bytes = bits / 8;
    if (fast && bits == 16)
        how->bytes = sizeof(int_fast16_t);
    if (fast && bits == 32)
        how->bytes = sizeof(int_fast32_t);
    return at;
}

static const char *parse_length(const char *at, struct pf_conversion *how)
{
    how->bytes = 4;
    switch (*at) {
    case 'h':
        how->bytes = at[1] == 'h' ? 1 : 2;
        return at + (at[1] == 'h' ? 2 : 1);
    case 'l':
        how->bytes = 8;
        how->wide = true;
        return at + (at[1] == 'l' ? 2 : 1);
    case 'L':
        how->bytes = 8;
        how->long_double = true;
        return at + 1;
    case 'j': case 'z': case 't': case 'q': case 'Z':
        how->bytes = 8;
        return at + 1;
    case 'w':
        return parse_bits(at + 1, how);
    }
    return at;
}

/* Letters of which the upper case is the same conversion, written in capitals. */
static void parse_letter(char letter, struct pf_conversion *how)
{
    how->kind = letter;
    switch (letter) {
    case 'X': case 'B': case 'E': case 'F': case 'G': case 'A':
        how->kind = (char)(letter + ('a' - 'A'));
        how->upper = true;
        break;
    case 'C': case 'S': /* what lc and ls were once */
        how->kind = (char)(letter + ('a' - 'A'));
        how->wide = true;
        break;
    case 'p':
        how->bytes = 8;
        break;
    }
}

static const char *parse(const char *at, struct pf_conversion *how, va_list arguments)
{
    *how = (struct pf_conversion){ .precision = -1 };
    at = parse_flags(at, how);
    at = parse_number(at, &how->width, arguments);
    if (how->width < 0) {
        how->left = true;
        how->width = -how->width;
    }
    if (*at == '.') {
        at = parse_number(at + 1, &how->precision, arguments);
        if (how->precision < 0)
            how->precision = -1; /* as if it were not there */
    }
    at = parse_length(at, how);
    parse_letter(*at, how);
    return *at ? at + 1 : at;
}

static void put_floating(struct pf_out *out, struct pf_conversion *how, va_list arguments)
{
    struct arguments *next = (struct arguments *)arguments;
    struct pf_real real = how->long_double ? next_long_double(next) : next_double(next);

    pf_put_real(out, how, &real);
}

/* Puts what the conversion asks for; false if it is none. */
static bool convert(struct pf_out *out, struct pf_conversion *how, va_list arguments)
{
    switch (how->kind) {
    case 'd': case 'i': pf_put_signed(out, how, next_signed(how, arguments)); return true;
    case 'u': case 'o': case 'x': case 'b': case 'p':
        pf_put_unsigned(out, how, next_unsigned(how, arguments));
        return true;
    case 'c': pf_put_character(out, how, va_arg(arguments, int)); return true;
    case 's':
        if (how->wide)
            pf_put_wide_string(out, how, va_arg(arguments, const wchar_t *));
        else
            pf_put_string(out, how, va_arg(arguments, const char *));
        return true;
    case 'e': case 'f': case 'g': case 'a': put_floating(out, how, arguments); return true;
    case 'n': store_count(how, va_arg(arguments, void *), out->count); return true;
    case '%': pf_put(out, '%'); return true;
    }
    return false;
}

void pf_format(struct pf_out *out, const char *format, va_list arguments)
{
    while (*format) {
        const char *start = format++;
        struct pf_conversion how;

        if (*start != '%') {
            pf_put(out, *start);
            continue;
        }
        format = parse(format, &how, arguments);
        if (!convert(out, &how, arguments))
            pf_put_text(out, start, format - start); /* as it was written */
    }
}

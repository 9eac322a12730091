/* SPDX-License-Identifier: Apache-2.0
 * printf's conversions, all that need no locale. The whole of it is done with integers, so that it needs no SSE:
 * a number in floating point is taken from the arguments as the bits that it is. */
#include "format.h"

#include <limits.h>
#include <stddef.h>

/* ---- Putting ---- */

void pf_put(struct pf_out *out, char c)
{
    out->count++;
    out->put(out, c);
}

void pf_put_many(struct pf_out *out, char c, int64_t times)
{
    while (times-- > 0)
        pf_put(out, c);
}

void pf_put_text(struct pf_out *out, const char *text, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++)
        pf_put(out, text[i]);
}

static int64_t length(const char *text, int64_t most)
{
    int64_t n = 0;

    while (n != most && text[n])
        n++;
    return n;
}

void pf_field_start(struct pf_out *out, const struct pf_conversion *how, const char *prefix, int64_t bytes)
{
    int64_t before = length(prefix, -1), padding = how->width - before - bytes;
    bool spaces = !how->left && !how->zero;

    if (spaces)
        pf_put_many(out, ' ', padding);
    pf_put_text(out, prefix, before);
    if (!how->left && !spaces)
        pf_put_many(out, '0', padding);
}

void pf_field_end(struct pf_out *out, const struct pf_conversion *how, const char *prefix, int64_t bytes)
{
    if (how->left)
        pf_put_many(out, ' ', how->width - length(prefix, -1) - bytes);
}

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

/* ---- Integers ---- */

static void put_integer(struct pf_out *out, struct pf_conversion *how, const char *prefix, uint64_t value, unsigned base)
{
    const char *letters = how->upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char digits[64];
    int n = 0;

    for (uint64_t rest = value; rest; rest /= base)
        digits[n++] = letters[rest % base];
    int64_t zeros = (how->precision < 0 ? 1 : how->precision) - n;
    if (how->kind == 'o' && how->alternate && zeros <= 0)
        zeros = 1; /* the first digit is to be a zero */
    if (zeros < 0)
        zeros = 0;
    if (how->precision >= 0)
        how->zero = false;
    pf_field_start(out, how, prefix, zeros + n);
    pf_put_many(out, '0', zeros);
    for (int i = n; i > 0; i--)
        pf_put(out, digits[i - 1]);
    pf_field_end(out, how, prefix, zeros + n);
}

static void put_signed(struct pf_out *out, struct pf_conversion *how, int64_t value)
{
    const char *sign = value < 0 ? "-" : how->plus ? "+" : how->space ? " " : "";

    put_integer(out, how, sign, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

static void put_unsigned(struct pf_out *out, struct pf_conversion *how, uint64_t value)
{
    bool marked = how->alternate && value;

    switch (how->kind) {
    case 'o': put_integer(out, how, "", value, 8); break;
    case 'x': put_integer(out, how, !marked ? "" : how->upper ? "0X" : "0x", value, 16); break;
    case 'b': put_integer(out, how, !marked ? "" : how->upper ? "0B" : "0b", value, 2); break;
    case 'p': put_integer(out, how, "0x", value, 16); break;
    default: put_integer(out, how, "", value, 10); break;
    }
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

/* ---- Text ---- */

/* A character in UTF-8; returns its bytes. What is no character becomes the one that stands for that. */
static int encode(uint32_t c, char bytes[4])
{
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        c = 0xfffd;
    int more = (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);

    for (int i = more; i > 0; i--, c >>= 6)
        bytes[i] = (char)(0x80 | (c & 0x3f));
    bytes[0] = (char)(more ? (0xff00 >> (more + 1) & 0xff) | c : c);
    return more + 1;
}

static void put_bytes(struct pf_out *out, struct pf_conversion *how, const char *text, int64_t bytes)
{
    how->zero = false;
    pf_field_start(out, how, "", bytes);
    pf_put_text(out, text, bytes);
    pf_field_end(out, how, "", bytes);
}

static void put_character(struct pf_out *out, struct pf_conversion *how, int c)
{
    char bytes[4] = { (char)c };

    put_bytes(out, how, bytes, how->wide ? encode((uint32_t)c, bytes) : 1);
}

static void put_string(struct pf_out *out, struct pf_conversion *how, const char *text)
{
    if (!text)
        text = "(null)";
    put_bytes(out, how, text, length(text, how->precision));
}

/* Whole characters only: the precision is of bytes. */
static void put_wide_string(struct pf_out *out, struct pf_conversion *how, const wchar_t *text)
{
    char bytes[4];
    int64_t total = 0, n = 0;

    if (!text)
        text = L"(null)";
    for (; how->precision != total && text[n]; n++) {
        int more = encode((uint32_t)text[n], bytes);
        if (how->precision >= 0 && total + more > how->precision)
            break;
        total += more;
    }
    how->zero = false;
    pf_field_start(out, how, "", total);
    for (int64_t i = 0; i < n; i++)
        pf_put_text(out, bytes, encode((uint32_t)text[i], bytes));
    pf_field_end(out, how, "", total);
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
    case 'd': case 'i': put_signed(out, how, next_signed(how, arguments)); return true;
    case 'u': case 'o': case 'x': case 'b': case 'p':
        put_unsigned(out, how, next_unsigned(how, arguments));
        return true;
    case 'c': put_character(out, how, va_arg(arguments, int)); return true;
    case 's':
        if (how->wide)
            put_wide_string(out, how, va_arg(arguments, const wchar_t *));
        else
            put_string(out, how, va_arg(arguments, const char *));
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

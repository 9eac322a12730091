/* SPDX-License-Identifier: Apache-2.0
 * printf's conversions, on their own: from a format and its arguments to characters. */
#ifndef PF_FORMAT_H
#define PF_FORMAT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where the characters go, one by one; `count` is how many there have been. */
struct pf_out {
    void (*put)(struct pf_out *out, char c);
    uint64_t count;
};

/* One conversion, as the format says it. */
struct pf_conversion {
    bool left, plus, space, alternate, zero;
    bool upper;       /* X, E, F, G, A */
    bool wide;        /* lc, ls */
    bool long_double;
    char kind;        /* the letter, in lower case if it has two */
    int bytes;        /* of an integer argument: 1, 2, 4 or 8 */
    int64_t width;    /* at least */
    int64_t precision; /* -1: none */
};

/* A floating-point number in parts: mantissa * 2^exponent, if it is finite. */
struct pf_real {
    bool negative, infinite, nan;
    bool extended;    /* of 64 bits of mantissa, and not 53 */
    uint64_t mantissa;
    int exponent;
};

void pf_format(struct pf_out *out, const char *format, va_list arguments);

/* fields.c. */
void pf_put(struct pf_out *out, char c);
void pf_put_many(struct pf_out *out, char c, int64_t times);
void pf_put_text(struct pf_out *out, const char *text, int64_t bytes);

/* A field: padding up to the width, what goes before the digits (a sign, "0x"), and zeros if these fill it. `bytes` is
 * how many the caller puts between the two calls. */
void pf_field_start(struct pf_out *out, const struct pf_conversion *how, const char *prefix, int64_t bytes);
void pf_field_end(struct pf_out *out, const struct pf_conversion *how, const char *prefix, int64_t bytes);

void pf_put_signed(struct pf_out *out, struct pf_conversion *how, int64_t value);
void pf_put_unsigned(struct pf_out *out, struct pf_conversion *how, uint64_t value); /* u, o, x, b, p */
void pf_put_character(struct pf_out *out, struct pf_conversion *how, int c);
void pf_put_string(struct pf_out *out, struct pf_conversion *how, const char *text);
void pf_put_wide_string(struct pf_out *out, struct pf_conversion *how, const wchar_t *text);

/* real.c: e, f, g and a. */
void pf_put_real(struct pf_out *out, struct pf_conversion *how, const struct pf_real *real);

#endif

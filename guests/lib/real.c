/* SPDX-License-Identifier: Apache-2.0
 * Floating-point numbers as text: exact, then rounded to the nearest, ties to even. */
#include "format.h"

/* ---- Decimals: digits * 10^-scale, every digit there is ---- */

#define CHUNK 1000000000 /* nine digits */
/* The most digits: the smallest number's mantissa * 5^scale, and room for a carry. */
#define DOUBLE_CHUNKS 88         /* 767 digits */
#define LONG_DOUBLE_CHUNKS 1284  /* 11,514 digits */

struct decimal {
    uint32_t *chunk; /* the lowest first */
    int chunks;
    int64_t digits;  /* none for zero */
    int64_t scale;
};

static const uint32_t power10[] = { 1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, CHUNK };

static void count_digits(struct decimal *d)
{
    while (d->chunks && !d->chunk[d->chunks - 1])
        d->chunks--;
    d->digits = d->chunks * 9;
    for (int i = 8; d->chunks && i > 0 && d->chunk[d->chunks - 1] < power10[i]; i--)
        d->digits--;
}

static void multiply(struct decimal *d, uint32_t factor)
{
    uint64_t carry = 0;

    for (int i = 0; i < d->chunks; i++) {
        carry += (uint64_t)d->chunk[i] * factor;
        d->chunk[i] = (uint32_t)(carry % CHUNK);
        carry /= CHUNK;
    }
    for (; carry; carry /= CHUNK)
        d->chunk[d->chunks++] = (uint32_t)(carry % CHUNK);
}

/* mantissa * 2^-n is mantissa * 5^n * 10^-n: whole numbers throughout. */
static void decimal_of(struct decimal *d, const struct pf_real *real)
{
    uint64_t mantissa = real->mantissa;
    int exponent = mantissa ? real->exponent : 0;

    for (; exponent < 0 && !(mantissa & 1); exponent++)
        mantissa >>= 1;
    d->chunks = 0;
    for (; mantissa; mantissa /= CHUNK)
        d->chunk[d->chunks++] = (uint32_t)(mantissa % CHUNK);
    d->scale = exponent < 0 ? -exponent : 0;
    for (; exponent > 0; exponent -= exponent < 30 ? exponent : 30)
        multiply(d, 1u << (exponent < 30 ? exponent : 30));
    for (; exponent <= -13; exponent += 13)
        multiply(d, 1220703125);
    for (; exponent < 0; exponent++)
        multiply(d, 5);
    count_digits(d);
}

/* The digit at a place; places count from the lowest, and beyond either end there are zeros. */
static unsigned digit(const struct decimal *d, int64_t place)
{
    if (place < 0 || place >= d->digits)
        return 0;
    return d->chunk[place / 9] / power10[place % 9] % 10;
}

/* Whether there is anything but zeros below a place. */
static bool any_below(const struct decimal *d, int64_t place)
{
    for (int64_t i = 0; i < place / 9; i++)
        if (d->chunk[i])
            return true;
    return d->chunk[place / 9] % power10[place % 9] != 0;
}

/* Keeps the digits from a place on, rounded. */
static void round_to(struct decimal *d, int64_t place)
{
    if (place <= 0 || !d->digits)
        return;
    if (place > d->digits) {
        d->chunks = 0;
        d->digits = 0;
        return;
    }
    unsigned first = digit(d, place - 1);
    bool up = first > 5 || (first == 5 && (any_below(d, place - 1) || (digit(d, place) & 1)));
    int64_t index = place / 9;
    uint32_t unit = power10[place % 9];

    for (int64_t i = 0; i < index && i < d->chunks; i++)
        d->chunk[i] = 0;
    if (index == d->chunks)
        d->chunk[d->chunks++] = 0;
    d->chunk[index] -= d->chunk[index] % unit;
    for (d->chunk[index] += up ? unit : 0; d->chunk[index] >= CHUNK; d->chunk[index]++) {
        d->chunk[index++] -= CHUNK;
        if (index == d->chunks)
            d->chunk[d->chunks++] = 0;
    }
    count_digits(d);
}

static int64_t trailing_zeros(const struct decimal *d)
{
    int64_t n = 0;

    while (n < d->digits && !digit(d, n))
        n++;
    return n;
}

/* ---- Fields ---- */

static const char *sign_of(const struct pf_conversion *how, const struct pf_real *real)
{
    return real->negative ? "-" : how->plus ? "+" : how->space ? " " : "";
}

static void put_fixed(struct pf_out *out, const struct pf_conversion *how, const char *sign, const struct decimal *d,
                      int64_t precision)
{
    int64_t whole = d->digits > d->scale ? d->digits - d->scale : 1;
    bool point = precision > 0 || how->alternate;
    int64_t bytes = whole + point + precision;

    pf_field_start(out, how, sign, bytes);
    for (int64_t i = whole - 1; i >= 0; i--)
        pf_put(out, (char)('0' + digit(d, d->scale + i)));
    if (point)
        pf_put(out, '.');
    for (int64_t i = 1; i <= precision; i++)
        pf_put(out, (char)('0' + digit(d, d->scale - i)));
    pf_field_end(out, how, sign, bytes);
}

static int decimal_digits(int64_t value)
{
    int n = 1;

    for (; value >= 10; value /= 10)
        n++;
    return n;
}

/* "e+05", "p-3": a letter, a sign, and at least so many digits. Returns its length; puts it if there is an `out`. */
static int put_exponent(struct pf_out *out, char letter, int64_t exponent, int least)
{
    int64_t size = exponent < 0 ? -exponent : exponent;
    int n = decimal_digits(size);

    if (n < least)
        n = least;
    if (out) {
        pf_put(out, letter);
        pf_put(out, exponent < 0 ? '-' : '+');
        for (int i = n - 1; i >= 0; i--)
            pf_put(out, (char)('0' + size / power10[i] % 10));
    }
    return n + 2;
}

static int64_t exponent_of(const struct decimal *d)
{
    return d->digits ? d->digits - 1 - d->scale : 0;
}

static void put_scientific(struct pf_out *out, const struct pf_conversion *how, const char *sign,
                           const struct decimal *d, int64_t precision)
{
    bool point = precision > 0 || how->alternate;
    int64_t bytes = 1 + point + precision + put_exponent(NULL, 'e', exponent_of(d), 2);

    pf_field_start(out, how, sign, bytes);
    pf_put(out, (char)('0' + digit(d, d->digits - 1)));
    if (point)
        pf_put(out, '.');
    for (int64_t i = 1; i <= precision; i++)
        pf_put(out, (char)('0' + digit(d, d->digits - 1 - i)));
    put_exponent(out, how->upper ? 'E' : 'e', exponent_of(d), 2);
    pf_field_end(out, how, sign, bytes);
}

/* %g: so many significant digits, in whichever form is shorter, and unless `#` says so no zeros at the end. */
static void put_general(struct pf_out *out, const struct pf_conversion *how, const char *sign, struct decimal *d)
{
    int64_t significant = how->precision < 0 ? 6 : how->precision ? how->precision : 1;

    round_to(d, d->digits - significant);
    int64_t exponent = exponent_of(d), last = trailing_zeros(d);

    if (exponent < -4 || exponent >= significant) {
        int64_t needed = d->digits ? d->digits - 1 - last : 0;
        int64_t precision = significant - 1;
        put_scientific(out, how, sign, d, how->alternate || precision < needed ? precision : needed);
    } else {
        int64_t needed = d->digits && d->scale > last ? d->scale - last : 0;
        int64_t precision = significant - 1 - exponent;
        put_fixed(out, how, sign, d, how->alternate || precision < needed ? precision : needed);
    }
}

static void put_decimal(struct pf_out *out, const struct pf_conversion *how, const struct pf_real *real,
                        uint32_t *chunks)
{
    struct decimal d = { .chunk = chunks };
    const char *sign = sign_of(how, real);
    int64_t precision = how->precision < 0 ? 6 : how->precision;

    decimal_of(&d, real);
    if (how->kind == 'g') {
        put_general(out, how, sign, &d);
    } else if (how->kind == 'f') {
        round_to(&d, d.scale - precision);
        put_fixed(out, how, sign, &d, precision);
    } else {
        round_to(&d, d.digits - 1 - precision);
        put_scientific(out, how, sign, &d, precision);
    }
}

/* Apart from each other, so that the usual kind does not take five kilobytes of the stack. */
__attribute__((noinline)) static void put_double(struct pf_out *out, const struct pf_conversion *how,
                                                 const struct pf_real *real)
{
    uint32_t chunks[DOUBLE_CHUNKS];

    put_decimal(out, how, real, chunks);
}

__attribute__((noinline)) static void put_long_double(struct pf_out *out, const struct pf_conversion *how,
                                                      const struct pf_real *real)
{
    uint32_t chunks[LONG_DOUBLE_CHUNKS];

    put_decimal(out, how, real, chunks);
}

/* ---- Hexadecimal ---- */

struct hexadecimal {
    unsigned leading;
    uint64_t fraction; /* its digits, from the top */
    int64_t digits;    /* how many of them are to be put; those beyond 16 are zeros */
    int64_t exponent;
};

static void round_hexadecimal(struct hexadecimal *h, int64_t digits)
{
    if (digits >= 16) {
        h->digits = digits;
        return;
    }
    uint64_t kept = digits ? h->fraction >> (64 - 4 * digits) : 0;
    uint64_t rest = h->fraction << (4 * digits), half = 1ull << 63;
    bool odd = digits ? kept & 1 : h->leading & 1;

    h->fraction = digits ? kept << (64 - 4 * digits) : 0;
    h->digits = digits;
    if (rest < half || (rest == half && !odd))
        return;
    if (digits)
        h->fraction += 1ull << (64 - 4 * digits);
    if (!h->fraction && ++h->leading == 16) { /* all of it was carried */
        h->leading = 1;
        h->exponent += 4;
    }
}

static struct hexadecimal hexadecimal_of(const struct pf_conversion *how, const struct pf_real *real)
{
    int bits = real->extended ? 60 : 52; /* after the leading digit */
    struct hexadecimal h = {
        .leading = (unsigned)(real->mantissa >> bits),
        .fraction = real->mantissa << (64 - bits),
        .exponent = real->mantissa ? real->exponent + bits : 0,
    };

    if (how->precision >= 0)
        round_hexadecimal(&h, how->precision);
    else
        while (h.digits < 16 && h.fraction << (4 * h.digits))
            h.digits++;
    return h;
}

static void put_hexadecimal(struct pf_out *out, const struct pf_conversion *how, const struct pf_real *real)
{
    struct hexadecimal h = hexadecimal_of(how, real);
    const char *letters = how->upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char prefix[4], *end = prefix;
    bool point = h.digits || how->alternate;

    for (const char *sign = sign_of(how, real); *sign; sign++)
        *end++ = *sign;
    *end++ = '0';
    *end++ = how->upper ? 'X' : 'x';
    *end = 0;
    int64_t bytes = 1 + point + h.digits + put_exponent(NULL, 'p', h.exponent, 1);
    pf_field_start(out, how, prefix, bytes);
    pf_put(out, letters[h.leading]);
    if (point)
        pf_put(out, '.');
    for (int64_t i = 0; i < h.digits; i++)
        pf_put(out, i < 16 ? letters[h.fraction >> (60 - 4 * i) & 15] : '0');
    put_exponent(out, how->upper ? 'P' : 'p', h.exponent, 1);
    pf_field_end(out, how, prefix, bytes);
}

void pf_put_real(struct pf_out *out, struct pf_conversion *how, const struct pf_real *real)
{
    if (real->nan || real->infinite) {
        const char *text = real->nan ? how->upper ? "NAN" : "nan" : how->upper ? "INF" : "inf";
        const char *sign = sign_of(how, real);

        how->zero = false;
        pf_field_start(out, how, sign, 3);
        pf_put_text(out, text, 3);
        pf_field_end(out, how, sign, 3);
    } else if (how->kind == 'a') {
        put_hexadecimal(out, how, real);
    } else if (real->extended) {
        put_long_double(out, how, real);
    } else {
        put_double(out, how, real);
    }
}

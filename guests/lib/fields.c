/* SPDX-License-Identifier: Apache-2.0
 * What printf puts: padded fields, integers, characters and strings. */
#include "format.h"

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

void pf_put_signed(struct pf_out *out, struct pf_conversion *how, int64_t value)
{
    const char *sign = value < 0 ? "-" : how->plus ? "+" : how->space ? " " : "";

    put_integer(out, how, sign, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

void pf_put_unsigned(struct pf_out *out, struct pf_conversion *how, uint64_t value)
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

void pf_put_character(struct pf_out *out, struct pf_conversion *how, int c)
{
    char bytes[4] = { (char)c };

    put_bytes(out, how, bytes, how->wide ? encode((uint32_t)c, bytes) : 1);
}

void pf_put_string(struct pf_out *out, struct pf_conversion *how, const char *text)
{
    if (!text)
        text = "(null)";
    put_bytes(out, how, text, length(text, how->precision));
}

/* Whole characters only: the precision is of bytes. */
void pf_put_wide_string(struct pf_out *out, struct pf_conversion *how, const wchar_t *text)
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

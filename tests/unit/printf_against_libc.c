/* The guest library's printf beside this system's: every flag, width, precision and length with many values. Prints what
 * differs, and at the end how many were compared. */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fields.c"
#include "format.c"
#include "real.c"

#define ROOM 40000

struct text {
    struct pf_out out;
    char bytes[ROOM];
};

static struct text ours;
static char theirs[ROOM];
static long compared, different;

static void put_in_text(struct pf_out *out, char c)
{
    if (out->count < ROOM)
        ((struct text *)out)->bytes[out->count - 1] = c;
}

__attribute__((format(printf, 1, 2))) static void compare(const char *format, ...)
{
    va_list arguments, again;

    va_start(arguments, format);
    va_copy(again, arguments);
    ours.out = (struct pf_out){ .put = put_in_text };
    pf_format(&ours.out, format, arguments);
    int length = vsnprintf(theirs, sizeof theirs, format, again);
    va_end(arguments);
    va_end(again);
    compared++;
    if (length == (int)ours.out.count && memcmp(theirs, ours.bytes, (size_t)length) == 0)
        return;
    if (different++ < 20)
        printf("%s: '%.*s', not '%s'\n", format, (int)ours.out.count, ours.bytes, theirs);
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"

static const char *const widths[] = { "", "1", "7", "30" };
static const char *const precisions[] = { "", ".", ".1", ".2", ".5", ".6", ".17", ".40" };

/* Calls `each` with every "%", flags, width and precision before `letters`. */
static void formats(const char *flags, const char *letters, void (*each)(const char *format))
{
    size_t sets = (size_t)1 << strlen(flags);

    for (size_t set = 0; set < sets; set++) {
        char chosen[8] = "";
        for (size_t i = 0; flags[i]; i++)
            if (set >> i & 1)
                strncat(chosen, flags + i, 1);
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (size_t p = 0; p < sizeof precisions / sizeof *precisions; p++) {
                char format[64];
                snprintf(format, sizeof format, "[%%%s%s%s%s]", chosen, widths[w], precisions[p], letters);
                each(format);
            }
    }
}

/* ---- Integers ---- */

static const int64_t integers[] = { 0, 1, -1, 7, 8, 10, -10, 127, 128, 255, 256, 65535, -32769, 1234567, INT_MAX, INT_MIN,
                                    UINT_MAX, INT64_MAX, INT64_MIN, 0x123456789abcdef };

#define EACH_INTEGER(name, type) \
    static void name(const char *format) \
    { \
        for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) \
            compare(format, (type)integers[i]); \
    }
EACH_INTEGER(each_int, int)
EACH_INTEGER(each_long, long)

static void integers_of_every_length(void)
{
    const char *const lengths[] = { "hh", "h", "", "l", "ll", "j", "z", "t" };
    char letters[8];

    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (const char *kind = "di"; *kind; kind++) {
            snprintf(letters, sizeof letters, "%s%c", lengths[i], *kind);
            formats("-+ 0", letters, i < 3 ? each_int : each_long);
        }
        for (const char *kind = "uoxX"; *kind; kind++) {
            snprintf(letters, sizeof letters, "%s%c", lengths[i], *kind);
            formats(*kind == 'u' ? "-0" : "-#0", letters, i < 3 ? each_int : each_long);
        }
    }
}

/* ---- Floating point ---- */

static const double doubles[] = { 0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, 0.1, 0.05, 0.15, 0.25, 0.35, 9.5, 9.995, 99.9999995, 999999.5,
                                  9999995, 1e5, 1e6, 1e7, 123456789, 1e-4, 1e-5, 0.00012345, 1e15, 1e16, 1e22, 1e23, 1e100, -1e-100, 3.14159265358979,
                                  DBL_MAX, DBL_MIN, DBL_TRUE_MIN, DBL_EPSILON, 4.9406564584124654e-324 * 12345, 8.5, 1048576.5, INFINITY, -INFINITY, NAN };

static uint64_t random_bits(void)
{
    static uint64_t state = 88172645463325252;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static double random_double(void)
{
    uint64_t bits = random_bits();
    double value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Of any exponent, or of few digits, for ties. */
static long double random_long_double(void)
{
    int exponent = (int)(random_bits() % 32900) - 16445;
    long double value = ldexpl((long double)(random_bits() | 1ull << 63), exponent - 63);

    return random_bits() & 1 ? value : -value;
}

/* glibc before 2.37 forgets the zeros of %#g if rounding has made another digit: "1.e+06". */
static bool forgotten_zeros(const char *format, double value)
{
    return strchr(format, '#') && strpbrk(format, "gG") && (value == 999999.5 || value == 99.9999995 || value == 9.995);
}

static void each_double(const char *format)
{
    for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++)
        if (!forgotten_zeros(format, doubles[i]))
            compare(format, doubles[i]);
    for (int i = 0; i < 4; i++) {
        compare(format, random_double());
        compare(format, (double)(int64_t)random_bits() / (double)(1ull << (random_bits() % 64)));
        compare(format, (double)(random_bits() % 4096) / 64);
    }
}

static void each_long_double(const char *format)
{
    const long double values[] = { 0.0L, -0.0L, 1.0L, 0.1L, 2.5L, 9.9999999999999999999L, 1e-10L, 123456.789L, INFINITY, -NAN };

    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        compare(format, values[i]);
    compare(format, (long double)random_bits() / (long double)(1ull << (random_bits() % 64)));
}

static void floating_point(void)
{
    const char *const kinds[] = { "e", "E", "f", "F", "g", "G", "a", "A" };

#ifndef __GLIBC__
    size_t count = 6; /* C leaves it open which digit leads in hexadecimal */
#else
    size_t count = 8;
#endif
    for (size_t i = 0; i < count; i++) {
        char letters[4];
        snprintf(letters, sizeof letters, "%s", kinds[i]);
        formats("-+ #0", letters, each_double);
        snprintf(letters, sizeof letters, "L%s", kinds[i]);
        formats("-+#0", letters, each_long_double);
    }
    const long double ends[] = { LDBL_MAX, -LDBL_MAX, LDBL_MIN, LDBL_TRUE_MIN, 1e4932L, 1e-4940L };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        compare("%Lf %Le %Lg", ends[i], ends[i], ends[i]);
        compare("%.17000Lf", ends[i]);
    }
    for (int i = 0; i < 300; i++) {
        long double value = random_long_double();
        compare("%Lf", value);
        compare("%.30Le|%Lg", value, value);
        compare("%.1100f|%.800e|%.770g", (double)value, random_double(), random_double());
    }
}

/* ---- The rest ---- */

static void each_string(const char *format)
{
    compare(format, "");
    compare(format, "abc");
    compare(format, "a longer one, of thirty-eight letters.");
}

static void each_character(const char *format)
{
    compare(format, 'x');
    compare(format, 0);
}

static void each_pointer(const char *format)
{
    compare(format, (void *)each_pointer);
    compare(format, (void *)1);
}

static void the_rest(void)
{
    int n = -1, m = -1;
    signed char hh[2] = { -1, -1 };
    char unterminated[3] = { 'a', 'b', 'c' };

    formats("-", "s", each_string);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        char format[16];
        for (int left = 0; left < 2; left++) {
            snprintf(format, sizeof format, "[%%%s%sc]", left ? "-" : "", widths[i]);
            each_character(format);
            snprintf(format, sizeof format, "[%%%s%sp]", left ? "-" : "", widths[i]);
            each_pointer(format);
        }
    }
    compare("%.3s|%.*s|%.*s", unterminated, 2, unterminated, -1, "whole");
    compare("%*d|%-*d|%*d|%0*d", 6, 1, 6, 2, -6, 3, 6, -4);
    compare("%.*d|%.*d|%*.*f", 3, 1, -3, 2, 9, 2, 3.14159);
    compare("%d %s %c %u %lx %f %p %% %Lf %e", 1, "two", '3', 4u, 5ul, 6.0, (void *)7, 8.0L, 9.0);
    compare("%f %f %f %f %f %f %f %f %f %f %d %d %d %d %d %d", 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 1, 2, 3, 4, 5, 6);
    compare("%Lf %f %Lf %d %Lf", 1.L, 2., 3.L, 4, 5.L);
    compare("%d%Lf%d%d%d%d%d%d%Lf%d%f", 1, 2.L, 3, 4, 5, 6, 7, 8, 9.L, 10, 11.);
    compare("abc%n%hhn", &n, &hh[0]);
    compare("%'d|%'f", 1234567, 1234567.);
    snprintf(theirs, sizeof theirs, "abc%n%hhn", &m, &hh[1]);
    if (n != 3 || hh[0] != 3)
        printf("%%n stores %d and %d\n", n, hh[0]);
    compare("%.500d|%1000d|%-1000s|", 1, 2, "three");
}

int main(void)
{
    integers_of_every_length();
    floating_point();
    the_rest();
    printf("%ld compared, %ld different\n", compared, different);
    return different != 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints what C's printf would, by every way in which arguments are passed. Each line says what is to be seen. */
#include "pf.h"

#define LINE(seen, ...) pf_printf(__VA_ARGS__)

/* A printf of a guest's own. */
__attribute__((format(printf, 2, 3))) static void mine(int number, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    pf_printf("%d:", number);
    pf_vprintf(format, arguments);
    va_end(arguments);
}

#define MINE(seen, ...) mine(1, __VA_ARGS__)

int main(void)
{
    size_t size = 3;
    long double extended = 0.1L;
    signed char count = 0;
    int count_int = 0;

    LINE("3 pages", "%zu %s", size, "pages");
    LINE("0a|    5|ab   |9|xy|FF|10|1.500000|end 77", "%02x|%5d|%-5s|%i|%.2s|%X|%o|%f|end %d", 10, 5, "ab", 9, "xyz", 255, 8, 1.5, 77);
    LINE("+7| 7|0x2a|052|-0042|007|   +5", "%+d|% d|%#x|%#o|%05d|%.3d|%+5d", 7, 7, 42, 42, -42, 7, 5);
    LINE("   12|12   |-3|1.50|ab", "%*d|%*d|%*d|%.*f|%.*s", 5, 12, -5, 12, 0, -3, 2, 1.5, 2, "abc");
    LINE("-1 255 -1 65535 -9223372036854775808 18446744073709551615", "%hhd %hhu %hd %hu %ld %llu", 255, 255, 65535, 65535, -9223372036854775807 - 1, 18446744073709551615ull);
    LINE("-5 5 -5", "%jd %zu %td", (intmax_t)-5, (size_t)5, (ptrdiff_t)-5);
    LINE("1 2 3 4 5 6 7 8 9 10", "%d %d %d %d %d %d %d %d %d %d", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10);
    LINE("1.0 2.0 3.0 4.0 5.0 6.0 7.0 8.0 9.0 10.0 11", "%.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %d", 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11);
    LINE("1 0.1 two 3 0.100000 4.5 c 0x10", "%d %.1Lf %s %u %Lf %g %c %p", 1, extended, "two", 3u, extended, 4.5, 'c', (void *)16);
    LINE("1.5e+00 1.5E-10 0.0001 1e-05 1e+06 123457 0x1.8p+0 inf -INF", "%.1e %.1E %g %g %g %g %a %f %F", 1.5, 1.5e-10, 0.0001, 0.00001, 1e6, 123456.7, 1.5, __builtin_inf(), -__builtin_inf());
    LINE("0.1000000000000000055511151231257827021181583404541015625", "%.55f", 0.1);
    LINE("hé€ [hé] [€]", "%ls [%.4ls] [%lc]", L"hé€", L"hé€", (__WINT_TYPE__)L'€');
    LINE("four%", "four%n%%", &count_int);
    LINE("4 7", "%d %d%hhn", count_int, 7, &count);
    LINE("3", "%hhd", count);
    MINE("2.5 x 3", "%.1f %s %d", 2.5, "x", 3);
    return 0;
}

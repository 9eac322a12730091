/* Floating point and integers: functions, conversions, rounding, and what is no number. */
#include <errno.h>
#include <fenv.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static volatile double zero = 0;

static void functions(void)
{
    static double (*const all[])(double) = { sin, cos, tan, asin, acos, atan, sinh, cosh, tanh, exp, exp2, expm1, log,
        log2, log10, log1p, sqrt, cbrt, erf, tgamma, lgamma, floor, ceil, trunc, round, rint, nearbyint, fabs };
    static const double values[] = { 0, 0.25, 0.5, 0.999, -0.75, 1, 2.5, 10, -3.5, 700 };

    for (size_t f = 0; f < sizeof all / sizeof *all; f++) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            printf("%.12g ", all[f](values[v]) + 0);
        putchar('\n');
    }
    printf("%.12g %.12g %.12g %.12g\n", pow(2, 0.5), atan2(1, -1), hypot(3, 4), fmod(10.5, 3));
    printf("%.12g %.12g %.12g\n", remainder(10.5, 3), fma(2, 3, 4), nextafter(1, 2));
    int exponent;
    double whole, fraction = frexp(48.5, &exponent), rest = modf(-3.75, &whole);
    printf("%g %d %g %g %g\n", fraction, exponent, rest, whole, ldexp(0.75, 4));
}

static void conversions(void)
{
    static const char *const texts[] = { "0", "1e3", "-1.5e-300", "1e400", "1e-400", "0x1.8p3", "inf", "nan", "  12abc",
        "179769313486231570000000000000000000000", "2.2250738585072011e-308", "9007199254740993", "", "." };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char *end;
        errno = 0;
        double value = strtod(texts[i], &end);
        printf("%s -> %.17g %d %d\n", texts[i], value, (int)(end - texts[i]), errno);
    }
    errno = 0;
    printf("%ld %d\n", strtol("99999999999999999999", NULL, 10), errno);
    printf("%lu %ld %ld\n", strtoul("ffff", NULL, 16), strtol("-0x7f", NULL, 0), strtol("z", NULL, 36));
    printf("%.20g %.20g\n", 0.1, 1.0 / 3);
    printf("%.30Lf %.3Lf\n", 0.1L, sqrtl(2.0L));
}

static void rounding(void)
{
    static const int modes[] = { FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO };

    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        volatile double third = 1 / (3 + zero);
        volatile long double long_third = 1 / (3 + (long double)zero);
        printf("%d %.17g %.21Lg %g %ld\n", i, third, long_third, rint(2.5), lrint(-1.5));
    }
    fesetround(FE_TONEAREST);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double infinite = 1 / zero;
    printf("%g %d %d\n", infinite, !!fetestexcept(FE_DIVBYZERO), !!fetestexcept(FE_INVALID));
    volatile double nothing = zero / zero;
    printf("%d %d %d\n", !!isnan(nothing), !!fetestexcept(FE_INVALID), fpclassify(DBL_MIN / 4) == FP_SUBNORMAL);
}

int main(void)
{
    functions();
    conversions();
    rounding();
    __int128 wide = (__int128)INT64_MAX * INT64_MAX / 12345;
    printf("%" PRIx64 "%016" PRIx64 "\n", (uint64_t)(wide >> 64), (uint64_t)wide);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 * Functions of very many arrays, and of arrays that lie in pieces. */
#include <stddef.h>
#include <stdint.h>

#define TEN(n) \
    uint8_t *n##0, uint8_t *n##1, uint8_t *n##2, uint8_t *n##3, uint8_t *n##4, uint8_t *n##5, uint8_t *n##6, \
        uint8_t *n##7, uint8_t *n##8, uint8_t *n##9
#define FIFTY(n) TEN(n##a), TEN(n##b), TEN(n##c), TEN(n##d), TEN(n##e)

#define NEXT(n) \
    next(n##0), next(n##1), next(n##2), next(n##3), next(n##4), next(n##5), next(n##6), next(n##7), next(n##8), \
        next(n##9)
#define NEXT_FIFTY(n) NEXT(n##a), NEXT(n##b), NEXT(n##c), NEXT(n##d), NEXT(n##e)

#define LENGTH 10 /* of each of the many */

static void next(uint8_t *bytes)
{
    for (int i = 0; i < LENGTH; i++)
        bytes[i]++;
}

int one(void)
{
    return 1;
}

/* Adds up the first two, and fills the others. */
long mixes(const uint8_t *a, const uint8_t *b, uint8_t *c, uint8_t *d, long length, uint8_t *e)
{
    long total = 0;

    for (long i = 0; i < length; i++) {
        total += a[i] + b[i];
        c[i] = d[i] = 4;
    }
    e[0]++;
    return total;
}

void next_of_each(FIFTY(a), FIFTY(b), FIFTY(c), FIFTY(d), FIFTY(e))
{
    NEXT_FIFTY(a), NEXT_FIFTY(b), NEXT_FIFTY(c), NEXT_FIFTY(d), NEXT_FIFTY(e);
}

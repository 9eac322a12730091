/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes through a null pointer. Must stop with a page fault: a write of 0. */
#include "pf.h"

int main(void)
{
    volatile int *volatile null = NULL;

    *null = 1; /* faults here */
    return 1;
}

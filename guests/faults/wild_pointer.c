/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads from an address that is not mapped. Must stop with a page fault: a read of 0x123456789a8. */
#include "pf.h"

int main(void)
{
    const volatile int *volatile wild = (const volatile int *)0x123456789a8;

    return *wild; /* faults here */
}

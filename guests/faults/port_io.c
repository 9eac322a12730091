/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes to a port that is not the doorbell. Must stop: with #GP where ring 3 may not use ports. */
#include "pf.h"

int main(void)
{
    __asm__ volatile("outb %%al, %%dx" : : "a"(1), "d"(0x80)); /* faults here */
    return 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts in its data, its bss and its stack, and exits with all three: 211, however many have run before. */
#include "pf.h"

static volatile int data = 1, page_of_data[2048] = {[2047] = 1}, bss, pages_of_bss[8192];

int main(void)
{
    volatile int stack = 0;

    data += page_of_data[2047]++;
    bss += ++pages_of_bss[8191];
    stack++;
    return data * 100 + bss * 10 + stack;
}

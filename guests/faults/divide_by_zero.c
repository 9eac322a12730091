/* SPDX-License-Identifier: Apache-2.0
 *
 * Divides by zero. Must stop with #DE. */
#include "pf.h"

int main(void)
{
    unsigned quotient = 1, remainder = 0;

    __asm__ volatile("divl %2" : "+a"(quotient), "+d"(remainder) : "r"(0)); /* faults here */
    return 1;
}

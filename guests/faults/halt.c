/* SPDX-License-Identifier: Apache-2.0
 *
 * Executes HLT, with nothing to wake it. Must stop, as a halt in ring 0, with #GP in ring 3. */
#include "pf.h"

int main(void)
{
    __asm__ volatile("hlt"); /* faults here */
    return 1;
}

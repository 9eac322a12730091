/* SPDX-License-Identifier: Apache-2.0
 *
 * Executes UD2. Must stop with #UD. */
#include "pf.h"

int main(void)
{
    __asm__ volatile("ud2"); /* faults here */
    return 1;
}

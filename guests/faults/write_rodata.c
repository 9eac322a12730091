/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes to a constant. Must stop with a page fault: a write of an address that is mapped, but read-only. */
#include "pf.h"

int main(void)
{
    volatile char *constant = (volatile char *)(uintptr_t) "constant";

    *constant = 'C'; /* faults here */
    return 1;
}

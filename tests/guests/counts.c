/* SPDX-License-Identifier: Apache-2.0
 *
 * Counts for longer than two slices, and exits. */
#include "pf.h"

int main(void)
{
    for (volatile uint32_t i = 0; i < 60000000; i++)
        ;
    return 0;
}

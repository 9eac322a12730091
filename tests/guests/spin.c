/* SPDX-License-Identifier: Apache-2.0
 *
 * Never exits by itself. */
#include "pf.h"

int main(void)
{
    for (;;)
        __asm__ volatile("");
}

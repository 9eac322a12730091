/* SPDX-License-Identifier: Apache-2.0
 *
 * Executes one instruction of SSE, and exits with 4. */
#include "pf.h"

int main(void)
{
    __asm__ volatile("pxor %xmm0, %xmm0");
    return 4;
}

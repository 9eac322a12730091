/* SPDX-License-Identifier: Apache-2.0
 *
 * Recurses without end. Must stop with a page fault: a write of the guard area below the stack. */
#include "pf.h"

/* Its frame is needed after the call, so that it cannot become a loop. */
static __attribute__((noinline)) unsigned descend(unsigned depth)
{
    volatile unsigned char frame[512];

    frame[0] = (unsigned char)depth;
    if (depth == 0)
        return 0;
    return descend(depth + 1) + frame[0];
}

int main(void)
{
    return (int)descend(1);
}

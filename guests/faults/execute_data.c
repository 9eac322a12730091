/* SPDX-License-Identifier: Apache-2.0
 *
 * Jumps into its data. Must stop with a page fault: an execution of that address. */
#include "pf.h"

static volatile unsigned char data[] = { 0xc3 }; /* RET */

int main(void)
{
    void (*volatile function)(void) = (void (*)(void))(uintptr_t)data;

    function();
    return 1;
}

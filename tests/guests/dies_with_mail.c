/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes one message, which lends it a page, and dies of an access with whatever else there is not taken. */
#include "pf.h"

int main(void)
{
    pf_message message;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    volatile uintptr_t nowhere = 0x10;
    *(volatile int *)nowhere = *(int *)pf_data(&message);
    return 1;
}

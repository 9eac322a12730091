/* SPDX-License-Identifier: Apache-2.0
 *
 * Logs 10,000 lines without a pause. Must be printed, all of them in order, and hold up nobody. */
#include "pf.h"

int main(void)
{
    for (int i = 0; i < 10000; i++)
        PF_CHECK(pf_printf("line %d", i) == PF_OK);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Logs a thousand lines, more than a pipe holds. */
#include "pf.h"

int main(void)
{
    for (int i = 0; i < 1000; i++)
        pf_printf("line %d of a thousand", i);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes two messages, and logs the length of the second. */
#include "pf.h"

int main(void)
{
    pf_message m;

    for (int i = 0; i < 2; i++)
        if (pf_receive(&m, 5000000) != PF_OK)
            return 9;
    pf_printf("%u bytes", m.payload_length);
    return 0;
}

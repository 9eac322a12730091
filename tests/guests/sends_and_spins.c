/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends two messages to the second peer, which may have ended by the first; then it spins. */
#include "pf.h"

int main(void)
{
    PF_CHECK(pf_send_inline(2, "", 0, 7) == PF_OK);
    pf_send_inline(2, "", 0, 8);
    for (volatile int i = 0;; i++)
        ;
}

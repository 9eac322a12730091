/* SPDX-License-Identifier: Apache-2.0
 *
 * Adds one to the first byte of what it gets, and gives it to the host. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    ++*(unsigned char *)pf_data(&m);
    m.receiver = PF_PEER_HOST;
    return pf_transmit(&m) == PF_OK ? 0 : 1;
}

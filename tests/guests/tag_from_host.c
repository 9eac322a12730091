/* SPDX-License-Identifier: Apache-2.0
 *
 * Expects a greeting from the host, and exits with its tag. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK && m.sender == PF_PEER_HOST);
    return memcmp(m.payload, "from the host", 13) == 0 ? (int)m.tag : 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends what it gets from the host to b. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    return pf_send(pf_peer("b"), pf_data(&m), m.extents[0].pages, m.length, m.tag) == PF_OK ? 0 : 1;
}

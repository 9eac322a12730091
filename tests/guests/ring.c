/* SPDX-License-Identifier: Apache-2.0
 *
 * Passes a page that counts its hops on to the one peer it may send to; who makes the last hop tells
 * the host. */
#include "pf.h"

int main(void)
{
    pf_message m;
    uint32_t next = PF_NO_PEER;

    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].id != PF_PEER_HOST && (PF->peers[i].flags & PF_PEER_SEND))
            next = PF->peers[i].id;
    while (pf_receive(&m, PF_FOREVER) == PF_OK && m.extent_count) {
        uint64_t *left = pf_data(&m);
        if (!--*left)
            return pf_send(PF_PEER_HOST, left, 1, 8, 0) == PF_OK ? 1 : 2;
        PF_CHECK(pf_send(next, left, 1, 8, 0) == PF_OK);
    }
    return 0;
}

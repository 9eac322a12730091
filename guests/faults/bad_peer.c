/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends its page to every id that it has no channel to: unknown ones, its own, those of machines that exist but
 * are not connected to it, those that may only send to it. Each must be refused, PF_E_PEER: they all look the same.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

static bool may_send(uint32_t id)
{
    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].id == id)
            return PF->peers[i].flags & PF_PEER_SEND;
    return false;
}

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    PF_CHECK(!may_send(PF->self));
    for (uint32_t id = 0; id < 2 * PF_PEERS_MAX; id++)
        PF_CHECK(may_send(id) || pf_send(id, pf_data(&page), 1, 0, 0) == PF_E_PEER);
    PF_CHECK(pf_send(0x80000000, pf_data(&page), 1, 0, 0) == PF_E_PEER);
    PF_CHECK(pf_send(PF_NO_PEER, pf_data(&page), 1, 0, 0) == PF_E_PEER);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends "ping" to its first peer that is not the host, a hundred times, and checks what comes back. */
#include "pf.h"

#define ROUNDS 100

static uint32_t first_peer(void)
{
    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].id != PF_PEER_HOST && PF->peers[i].flags & PF_PEER_SEND)
            return PF->peers[i].id;
    pf_panic("no peer: connect me to one");
}

int main(void)
{
    uint32_t peer = first_peer();
    pf_message answer;

    for (uint64_t round = 0; round < ROUNDS; round++) {
        PF_CHECK(pf_send_inline(peer, "ping", 4, round) == PF_OK);
        do {
            PF_CHECK(pf_receive(&answer, 5000000) == PF_OK);
            if (answer.sender != peer)
                pf_drop(&answer); /* who else may write to me is not my affair */
        } while (answer.sender != peer);
        PF_CHECK(answer.tag == round);
        PF_CHECK(answer.payload_length == 4 && memcmp(answer.payload, "ping", 4) == 0);
    }
    PF_CHECK(pf_send_inline(peer, "", 0, 0) == PF_OK);
    pf_printf("%u messages there and back", ROUNDS);
    return 0;
}

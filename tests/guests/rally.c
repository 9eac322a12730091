/* SPDX-License-Identifier: Apache-2.0
 *
 * One of a pair that sends a word to and fro for ever. Whoever has an order from the host (the peer's id) begins. */
#include "pf.h"

int main(void)
{
    pf_message message;
    uint32_t peer = PF_NO_PEER;

    for (;;) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        if (message.sender == PF_PEER_HOST)
            memcpy(&peer, message.payload, sizeof peer);
        else
            peer = message.sender;
        PF_CHECK(pf_send_inline(peer, &peer, sizeof peer, 0) == PF_OK);
    }
}

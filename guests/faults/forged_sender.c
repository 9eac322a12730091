/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends three messages that claim to be the host's, its peer's and nobody's.
 * Must be sent, and received, as its own. */
#include "pf.h"

int main(void)
{
    const uint32_t peer = pf_peer("peer"), claims[] = { PF_PEER_HOST, peer, 0xdeadbeef };
    pf_message message = { .operation = PF_OP_SEND, .receiver = peer, .payload_length = 6, .payload = "forged" };

    for (size_t i = 0; i < 3; i++) {
        message.tag = i;
        message.sender = claims[i];
        message.message = 1;
        PF_CHECK(pf_transmit(&message) == PF_OK);
        PF_CHECK(message.sender == PF->self);
    }
    return 0;
}

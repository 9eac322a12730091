/* SPDX-License-Identifier: Apache-2.0
 *
 * No fault of its own, but an innocent machine beside those that have one: takes pages, adds one to the first
 * byte of each message, and passes it on to the peer it was last given a channel to: a machine, or the host. */
#include "pf.h"

int main(void)
{
    uint32_t next = PF_PEER_HOST;
    pf_message message;

    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].flags & PF_PEER_SEND)
            next = PF->peers[i].id;
    while (pf_receive(&message, PF_FOREVER) == PF_OK) {
        unsigned char *data = pf_data(&message);

        data[0]++;
        message.operation = PF_OP_SEND;
        message.receiver = next;
        PF_CHECK(pf_transmit(&message) == PF_OK);
    }
    return 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * No fault of its own, but an innocent machine beside those that have one: takes pages, adds one to the first
 * byte of each message, and passes it on to the peer named "next", or to the host where there is none. */
#include "pf.h"

int main(void)
{
    uint32_t next = pf_peer("next");
    pf_message message;

    while (pf_receive(&message, PF_FOREVER) == PF_OK) {
        unsigned char *data = pf_data(&message);

        data[0]++;
        message.operation = PF_OP_SEND;
        message.receiver = next == PF_NO_PEER ? PF_PEER_HOST : next;
        PF_CHECK(pf_transmit(&message) == PF_OK);
    }
    return 1;
}

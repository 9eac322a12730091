/* SPDX-License-Identifier: Apache-2.0
 *
 * Claims to be somebody else, and to know the message's number. */
#include "pf.h"

int main(void)
{
    pf_message m = { .operation = PF_OP_SEND, .sender = 99, .receiver = pf_peer("b"),
                     .message = 4711, .payload_length = 1 };
    PF_CHECK(pf_transmit(&m) == PF_OK);
    return m.sender == PF->self ? 0 : 1;
}

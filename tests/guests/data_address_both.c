/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends the host data, then the address of a page, then both. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    pf_message data = { .operation = PF_OP_SEND, .payload_length = 4, .payload = "data" };
    pf_message both = { .operation = PF_OP_SEND, .payload_length = 4, .payload = "both",
                        .extent_count = 1, .extents = { { m.extents[0].gpa + 4096, 1, 0 } } };
    pf_message address = { .operation = PF_OP_SEND,
                           .extent_count = 1, .extents = { { m.extents[0].gpa, 1, 0 } } };
    return -(pf_transmit(&data) + pf_transmit(&address) + pf_transmit(&both));
}

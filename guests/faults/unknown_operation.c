/* SPDX-License-Identifier: Apache-2.0
 *
 * Asks for operations that there are not, or that are not a guest's to ask for. Each must be refused, PF_E_OPERATION.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    static const uint16_t unknown[] = { 0, 10, 77, PF_OP_UNDELIVERED, 0x100 + PF_OP_SEND, 65535 };
    pf_message message = page;

    message.receiver = pf_peer("peer");
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        message.operation = unknown[i];
        PF_CHECK(pf_transmit(&message) == PF_E_OPERATION);
    }
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

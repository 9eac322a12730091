/* SPDX-License-Identifier: Apache-2.0
 *
 * Puts the head of its transmit ring where it cannot be, with a good message in every entry.
 * Must be answered PF_E_RING, in bell_status, and no message processed.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

static int ring(uint32_t head, uint32_t bell)
{
    PF->tx_head = head;
    pf_ring(bell);
    return PF->bell_status;
}

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    pf_message message = page;
    uint32_t tail = PF->tx_tail;

    message.operation = PF_OP_SEND;
    message.receiver = pf_peer("peer");
    for (int i = 0; i < PF_TX_ENTRIES; i++)
        memcpy((void *)&PF->tx[i], &message, sizeof message);
    PF_CHECK(ring(tail + PF_TX_ENTRIES + 1, PF_BELL_TRANSMIT) == PF_E_RING);
    PF_CHECK(ring(tail + 0x80000000, PF_BELL_TRANSMIT) == PF_E_RING);
    PF_CHECK(ring(tail - 1, PF_BELL_TRANSMIT) == PF_E_RING);
    PF_CHECK(ring(tail - 1, PF_BELL_TRANSMIT_WAIT) == PF_E_RING);
    PF_CHECK(ring(tail, PF_BELL_TRANSMIT) == PF_OK);
    PF_CHECK(PF->tx_tail == tail);
    PF->rx_tail = PF->rx_tail + 5;
    PF_CHECK(pf_wait(PF_FOREVER) == PF_E_RING);
    PF->rx_tail = PF->rx_tail - 5;
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Keeps the monitor as busy as it can, in the way that the host's message says (tests/kvm/test_fair_shares.py). */
#include "pf.h"

enum way { LOOP = 1, BELLS = 2, LOGS = 3, LOANS = 4, SHARES = 5, SINK = 6 };

struct order {
    uint32_t way, peer;
    uint64_t pages;
};

static char text[PF_LOG_MAX];

static void loans(uint32_t peer)
{
    const int count = PF_TX_ENTRIES * PF_EXTENTS_MAX;
    char *pages;

    PF_CHECK(pf_alloc(2 * count, (void **)&pages) == PF_OK);
    for (;;)
        for (uint16_t operation = PF_OP_LEND; operation <= PF_OP_RECLAIM; operation += PF_OP_RECLAIM - PF_OP_LEND) {
            for (int i = 0; i < count; i += PF_EXTENTS_MAX) {
                pf_message message = { .operation = operation, .receiver = peer, .extent_count = PF_EXTENTS_MAX };
                for (int j = 0; j < PF_EXTENTS_MAX; j++)
                    message.extents[j] = (struct pf_extent){ (uintptr_t)pages + (i + j) * 2 * PF_PAGE_SIZE, 1, 0 };
                PF_CHECK(pf_post(&message) == PF_OK);
            }
            pf_flush();
        }
}

static void shares(uint32_t peer, uint64_t pages)
{
    void *buffer;

    for (;;) {
        PF_CHECK(pf_alloc(pages, &buffer) == PF_OK);
        for (uint64_t i = 0; i < pages; i += 512)
            ((volatile char *)buffer)[i * PF_PAGE_SIZE] = 1;
        if (pf_share(peer, buffer, pages, 0, 0) == PF_OK)
            pf_reclaim(buffer, pages);
        PF_CHECK(pf_release(buffer, pages) == PF_OK);
    }
}

int main(void)
{
    pf_message message;
    struct order order;

    do
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    while (message.sender != PF_PEER_HOST);
    memcpy(&order, message.payload, sizeof order);
    memset(text, '\n', sizeof text);
    for (;;)
        switch (order.way) {
        case LOOP: break;
        case BELLS: pf_ring(PF_BELL_TRANSMIT); break;
        case LOGS:
            PF->log_gpa = (uintptr_t)text;
            PF->log_length = sizeof text;
            pf_ring(PF_BELL_LOG);
            break;
        case LOANS: loans(order.peer); break;
        case SHARES: shares(order.peer, order.pages); break;
        case SINK:
            PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
            pf_drop(&message);
            break;
        }
}

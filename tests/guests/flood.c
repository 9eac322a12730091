/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends messages to one peer, as fast as its queue has room, while another sends some to it. It takes what has come only
 * when it has to: when there is no room for what it sends, or nothing left to send. Every fourth message carries a page,
 * which is passed on with a later one. */
#include "pf.h"

struct order {
    uint32_t to, from;
    uint32_t sends, takes; /* how many */
};

static struct order order;
static uint32_t sent, taken;
static uint64_t *spare; /* a page, if there is one */

static void take(uint64_t timeout_us)
{
    pf_message message;
    int status = pf_receive(&message, timeout_us);

    if (status == PF_E_TIMEOUT && timeout_us == 0)
        return;
    PF_CHECK(status == PF_OK && message.sender == order.from && message.operation == PF_OP_SEND);
    PF_CHECK(message.tag == taken && message.extent_count == (taken % 4 == 0));
    taken++;
    if (!message.extent_count)
        return;
    uint64_t *page = pf_data(&message);

    PF_CHECK(*page == message.tag);
    if (spare)
        PF_CHECK(pf_release(page, 1) == PF_OK);
    else
        spare = page;
}

static int send_next(void)
{
    if (sent % 4)
        return pf_send_inline(order.to, "", 0, sent);
    if (!spare)
        PF_CHECK(pf_alloc(1, (void **)&spare) == PF_OK);
    *spare = sent;
    int status = pf_send(order.to, spare, 1, PF_PAGE_SIZE, sent);

    if (status == PF_OK)
        spare = NULL;
    return status;
}

int main(void)
{
    pf_message message;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK && message.sender == PF_PEER_HOST);
    memcpy(&order, message.payload, sizeof order);
    while (sent < order.sends) {
        int status = send_next();

        if (status == PF_OK) {
            sent++;
            continue;
        }
        PF_CHECK(status == PF_E_QUEUE_FULL);
        status = pf_wait_room(order.to, PF_FOREVER);
        PF_CHECK(status == PF_OK || status == PF_PENDING);
        if (status == PF_PENDING)
            take(0);
    }
    while (taken < order.takes)
        take(PF_FOREVER);
    return 0;
}

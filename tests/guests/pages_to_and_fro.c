/* SPDX-License-Identifier: Apache-2.0
 *
 * One of a pair that passes a page, or a word inline, to and fro, and looks at every word of it each time.
 *
 * An order from the host says how often, who begins, and how long to dawdle at random between looking for a message and
 * waiting for it, which is where a wake-up could be lost. */
#include "pf.h"

#define WORDS (PF_PAGE_SIZE / sizeof(uint64_t))
#define SPREAD 0x9e3779b97f4a7c15

struct order {
    uint32_t peer, begins;
    uint32_t rounds, dawdle;  /* iterations at most */
    uint64_t seed;
    uint32_t last;            /* whether to exit afterwards */
    uint32_t reserved;
};

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below ? (uint32_t)(state >> 16) % below : 0;
}

static void dawdle(const struct order *order)
{
    for (uint32_t i = draw(4) ? 0 : draw(order->dawdle); i; i--)
        __asm__ volatile("");
}

/* Takes the next message, waiting for it in one of the ways there are. */
static void take(const struct order *order, pf_message *message)
{
    while (PF->rx_tail == PF->rx_head) {
        uint32_t way = draw(4);

        dawdle(order);
        PF->wait_for = way == 0 ? 0 : way == 1 ? PF_WAIT_MESSAGE : PF_WAIT_MESSAGE | PF_WAIT_NOTICE;
        PF->notices_seen = PF->notice_count;
        PF->wait_timeout_us = draw(4) ? PF_FOREVER : draw(300);
        dawdle(order);
        pf_ring(PF_BELL_WAIT);
        PF_CHECK(PF->bell_status == PF_OK || PF->bell_status == PF_E_TIMEOUT);
    }
    PF_CHECK(pf_receive(message, 0) == PF_OK);
}

/* Sends, and now and then, or always if there is no dawdling, waits for the answer in the same exit. */
static void give(const struct order *order, uint64_t *page, uint64_t round, bool answered)
{
    pf_message message = { .operation = PF_OP_SEND, .receiver = order->peer, .tag = round };

    if (page) {
        message.extent_count = 1;
        message.extents[0] = (struct pf_extent){ .gpa = (uintptr_t)page, .pages = 1 };
        message.length = PF_PAGE_SIZE;
    } else {
        message.payload_length = sizeof round;
        memcpy(message.payload, &round, sizeof round);
    }
    if (!answered || (order->dawdle && draw(2))) {
        PF_CHECK(pf_transmit(&message) == PF_OK);
        return;
    }
    PF_CHECK(pf_post(&message) == PF_OK);
    PF->tx_head = PF->tx_head + 1;
    PF->wait_for = PF_WAIT_MESSAGE;
    PF->wait_timeout_us = !order->dawdle || draw(2) ? PF_FOREVER : draw(300);
    pf_ring(PF_BELL_TRANSMIT_WAIT);
    PF_CHECK(((volatile pf_message *)&PF->tx[(PF->tx_tail - 1) % PF_TX_ENTRIES])->status == PF_OK);
}

static void fill(uint64_t *page, uint64_t round)
{
    for (uint64_t i = 0; i < WORDS; i++)
        page[i] = (round + i) * SPREAD;
}

static void check(const struct order *order, const pf_message *message, const uint64_t *page, uint64_t round)
{
    PF_CHECK(message->operation == PF_OP_SEND && message->status == PF_OK);
    PF_CHECK(message->sender == order->peer && message->tag == round);
    PF_CHECK(message->extent_count == (page != NULL));
    for (uint64_t i = 0; page && i < WORDS; i++)
        PF_CHECK(page[i] == (round + i) * SPREAD);
}

/* Round by round: who begins sends an even word, who answers the odd one that follows. */
static void play(const struct order *order)
{
    static uint64_t *page; /* whoever's turn it is has it */
    pf_message message;

    if (order->begins && !page)
        PF_CHECK(pf_alloc(1, (void **)&page) == PF_OK);
    for (uint32_t i = 0; i < order->rounds; i++) {
        bool with_page = i % 2 == 0; /* both know */

        for (uint64_t half = 0; half < 2; half++) {
            uint64_t round = order->seed + 2 * i + half;
            if (order->begins == !half) {
                if (with_page)
                    fill(page, round);
                give(order, with_page ? page : NULL, round, half == 0 || i + 1 < order->rounds);
            } else {
                take(order, &message);
                if (with_page)
                    page = pf_data(&message);
                check(order, &message, with_page ? page : NULL, round);
            }
        }
    }
}

int main(void)
{
    pf_message message;
    struct order order;

    do {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK && message.sender == PF_PEER_HOST);
        memcpy(&order, message.payload, sizeof order);
        state = order.seed * 2 + 1 + order.begins;
        play(&order);
        PF_CHECK(pf_send_inline(PF_PEER_HOST, &order.rounds, sizeof order.rounds, 0) == PF_OK);
    } while (!order.last);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Transmits and waits with one exit, as the tag of the host's message says: see tests/kvm/test_calls.py. Its peers are
 * b, who answers, and c, who takes nothing. */
#include "pf.h"

#define NOBODY 9999
#define SHORT 20000 /* us */

static uint32_t b, c;
static pf_message message;

static pf_message *inline_to(uint32_t peer, uint64_t tag)
{
    memset(&message, 0, sizeof message);
    message.operation = PF_OP_SEND;
    message.receiver = peer;
    message.tag = tag;
    message.payload_length = 4;
    return &message;
}

static void post(uint32_t peer, uint64_t tag)
{
    PF_CHECK(pf_post(inline_to(peer, tag)) == PF_OK);
}

static void expect(uint32_t sender, uint64_t tag)
{
    PF_CHECK(message.sender == sender);
    PF_CHECK(message.tag == tag);
}

static bool nothing_came(void)
{
    return PF->rx_tail == PF->rx_head;
}

static void call(void)
{
    for (uint64_t i = 1; i <= 3; i++) {
        PF_CHECK(pf_call(inline_to(b, i), PF_FOREVER) == PF_OK);
        expect(b, i);
        PF_CHECK(*(uint32_t *)message.payload == i);
    }
}

static void call_refused(void)
{
    PF_CHECK(pf_call(inline_to(NOBODY, 1), PF_FOREVER) == PF_E_PEER);
    PF_CHECK(message.receiver == NOBODY && message.tag == 1);
    PF_CHECK(pf_receive(&message, 0) == PF_OK); /* the host's, which has been there all the time */
    expect(PF_PEER_HOST, 77);
}

static void call_in_vain(void)
{
    PF_CHECK(pf_call(inline_to(c, 1), SHORT) == PF_E_TIMEOUT);
    PF_CHECK(pf_call(inline_to(c, 2), 0) == PF_E_TIMEOUT);
    PF_CHECK(nothing_came());
}

static void call_with_a_full_ring(void)
{
    for (int i = 0; i < PF_TX_ENTRIES; i++)
        post(c, 1);
    PF_CHECK(pf_call(inline_to(b, 5), PF_FOREVER) == PF_E_RING);
    PF_CHECK(pf_post(&message) == PF_E_RING);
    PF_CHECK(message.receiver == b && nothing_came());
    PF_CHECK(pf_flush() == 0);
    PF_CHECK(pf_call(inline_to(b, 6), PF_FOREVER) == PF_OK);
    expect(b, 6);
    PF_CHECK(*(uint32_t *)message.payload == 1); /* the other one was not sent */
}

/* What has been posted goes along; if only that is refused, the call is none the worse. */
static void call_after_a_post(void)
{
    post(c, 1);
    post(NOBODY, 2);
    PF_CHECK(pf_call(inline_to(b, 3), PF_FOREVER) == PF_OK);
    expect(b, 3);
    post(c, 1);
    PF_CHECK(pf_call(inline_to(NOBODY, 4), PF_FOREVER) == PF_E_PEER);
}

static void wait_refused(void)
{
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t j = 0; j < 3; j++)
            post(i == j ? NOBODY : c, j);
        PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, PF_FOREVER) == 1); /* whichever of them it is */
    }
    post(NOBODY, 1);
    post(NOBODY, 2);
    PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, PF_FOREVER) == 2);
    PF_CHECK(nothing_came());
}

static void wait_for_an_answer(void)
{
    post(b, 1);
    post(b, 2);
    PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, PF_FOREVER) == 0);
    for (uint64_t i = 1; i <= 2; i++) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        expect(b, i);
    }
}

static void wait_with_nothing_posted(void)
{
    PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, 0) == PF_E_TIMEOUT);
    PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, SHORT) == PF_E_TIMEOUT);
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, b, PF_FOREVER) == 0);
}

/* c's queue takes two messages. */
static void wait_for_room(void)
{
    post(c, 1);
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, c, PF_FOREVER) == 0);
    post(c, 2);
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, c, SHORT) == PF_E_TIMEOUT);
    post(c, 3);
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, c, PF_FOREVER) == 1); /* it is full: no wait for what is not on its way */
}

/* A wait that cannot be is answered so, and what was posted has gone all the same. */
static void wait_for_nonsense(void)
{
    post(c, 1);
    PF_CHECK(pf_flush_wait(1u << 31, 0, PF_FOREVER) == PF_E_BELL);
    post(c, 2);
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, NOBODY, PF_FOREVER) == PF_E_PEER);
}

static void spoil_the_ring(void)
{
    PF->tx_head += PF_TX_ENTRIES + 1;
    pf_ring(PF_BELL_TRANSMIT_WAIT);
    PF_CHECK(PF->bell_status == PF_E_RING);
}

int main(void)
{
    static void (*const acts[])(void) = {
        call, call_refused, call_in_vain, call_with_a_full_ring, call_after_a_post, wait_refused, wait_for_an_answer,
        wait_with_nothing_posted, wait_for_room, wait_for_nonsense, spoil_the_ring,
    };

    b = pf_peer("b");
    c = pf_peer("c");
    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    PF_CHECK(message.tag < sizeof acts / sizeof *acts);
    acts[message.tag]();
    return 0;
}

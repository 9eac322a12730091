/* SPDX-License-Identifier: Apache-2.0
 *
 * One of a pair: "a" does everything that can be done with pages and b, round after round, and looks whether it was
 * done, whole and once; "b" does its part. Each round has a number, and so has whatever is said or written in it.
 *
 * An order from the host says how many rounds, and of how many pages. */
#include "pf.h"

enum way { ECHO, SEND, LEND, SHARE, LOSE, EXCHANGE, LAST };

struct order {
    uint32_t rounds, pages, last, reserved;
};

static uint32_t other;

static pf_message next(void)
{
    pf_message message;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    return message;
}

/* What b has done with a page is a sum: done twice, or not at all, it would be another. */
static void expect(const pf_message *message, uint64_t tag, const uint64_t *page, uint64_t pages, uint64_t word)
{
    uint64_t step = PF_PAGE_SIZE / sizeof *page;

    PF_CHECK(message->sender == other && message->tag == tag && message->status == PF_OK);
    for (uint64_t i = 0; page && i < pages; i += pages > 4 ? pages - 1 : 1)
        PF_CHECK(page[i * step] == word);
}

static void set(uint64_t *page, uint64_t pages, uint64_t word)
{
    for (uint64_t i = 0; i < pages; i += pages > 4 ? pages - 1 : 1)
        page[i * (PF_PAGE_SIZE / sizeof *page)] = word;
}

static uint64_t tag_of(uint64_t round, enum way way)
{
    return round << 8 | way;
}

static void echo(uint64_t round)
{
    pf_message message = { .operation = PF_OP_SEND, .receiver = other, .tag = tag_of(round, ECHO),
                           .payload_length = sizeof round };
    uint64_t answer;

    memcpy(message.payload, &round, sizeof round);
    PF_CHECK(pf_call(&message, PF_FOREVER) == PF_OK);
    memcpy(&answer, message.payload, sizeof answer);
    expect(&message, tag_of(round, ECHO), NULL, 0, 0);
    PF_CHECK(answer == round + 1);
}

static uint64_t *there_and_back(uint64_t round, uint64_t *page, uint64_t pages)
{
    pf_message message;
    uint64_t *spare;

    set(page, pages, round);
    PF_CHECK(pf_send(other, page, pages, pages * PF_PAGE_SIZE, tag_of(round, SEND)) == PF_OK);
    message = next();
    page = pf_data(&message);
    expect(&message, tag_of(round, SEND), page, pages, round + 1);

    PF_CHECK(pf_lend(other, page, pages, tag_of(round, LEND), 0) == PF_OK);
    message = next();
    expect(&message, tag_of(round, LEND), page, pages, round + 2);

    PF_CHECK(pf_share(other, page, pages, tag_of(round, SHARE), PF_FLAG_READONLY) == PF_OK);
    message = next();
    expect(&message, tag_of(round, SHARE), page, pages, round + 2);

    PF_CHECK(pf_lend(other, page, pages, tag_of(round, LOSE), 0) == PF_OK);
    PF_CHECK(pf_reclaim(page, pages) == PF_OK);
    message = next();
    expect(&message, tag_of(round, LOSE), page, pages, round + 2);

    PF_CHECK(pf_exchange(other, page, pages, pages * PF_PAGE_SIZE, tag_of(round, EXCHANGE)) == PF_OK);
    set(page, pages, *page + 7);
    message = next();
    spare = pf_data(&message);
    expect(&message, tag_of(round, EXCHANGE), spare, pages, round + 3);
    expect(&message, tag_of(round, EXCHANGE), page, pages, 7);
    PF_CHECK(pf_release(page, pages) == PF_OK);
    return spare;
}

/* Several in one doorbell: pages to b, one released, one allocated, and words. */
static void together(uint64_t round)
{
    pf_message post = { .receiver = other, .extent_count = 1, .tag = tag_of(round, SEND) }, message;
    uint64_t *page;

    PF_CHECK(pf_alloc(3, (void **)&page) == PF_OK);
    set(page, 2, round);
    for (int i = 0; i < 2; i++) {
        post.operation = PF_OP_SEND;
        post.length = PF_PAGE_SIZE;
        post.extents[0] = (struct pf_extent){ .gpa = (uintptr_t)page + i * PF_PAGE_SIZE, .pages = 1 };
        PF_CHECK(pf_post(&post) == PF_OK);
    }
    post.operation = PF_OP_RELEASE;
    post.length = 0;
    post.extents[0] = (struct pf_extent){ .gpa = (uintptr_t)page + 2 * PF_PAGE_SIZE, .pages = 1 };
    PF_CHECK(pf_post(&post) == PF_OK);
    PF_CHECK(pf_flush() == 0);
    for (int i = 0; i < 2; i++) {
        message = next();
        expect(&message, tag_of(round, SEND), pf_data(&message), 1, round + 1);
        PF_CHECK(pf_release(pf_data(&message), 1) == PF_OK);
    }
}

static void lead(const struct order *order, uint64_t first)
{
    uint64_t *page;

    PF_CHECK(pf_alloc(order->pages, (void **)&page) == PF_OK);
    for (uint64_t round = first; round < first + order->rounds; round++) {
        echo(round);
        page = there_and_back(round, page, order->pages);
        together(round);
        pf_progress(round, 0);
    }
    PF_CHECK(pf_release(page, order->pages) == PF_OK);
}

/* b's part: what is borrowed or sent gets one more, what is lost is let go of, and all is answered. */
static void follow(const pf_message *message)
{
    uint64_t *page = pf_data(message), pages = message->extent_count ? message->extents[0].pages : 0, round;

    switch ((enum way)(message->tag & 0xFF)) {
    case ECHO:
        memcpy(&round, message->payload, sizeof round);
        round++;
        PF_CHECK(pf_reply(message, &round, sizeof round) == PF_OK);
        break;
    case LOSE:
        while (pf_release(page, pages) != PF_OK)
            pf_wait(1000); /* a has not reclaimed it yet */
        PF_CHECK(pf_send_inline(other, "", 0, message->tag) == PF_OK);
        break;
    case SEND:
    case LEND:
    case EXCHANGE:
        set(page, pages, *page + 1);
        /* fall through */
    case SHARE:
        PF_CHECK(pf_reply(message, "", 0) == PF_OK);
        break;
    case LAST:
        pf_exit(0);
    }
}

int main(void)
{
    uint64_t done = 0;
    bool leads = !strcmp((const char *)PF->name, "a");

    other = pf_peer(leads ? "b" : "a");
    for (;;) {
        pf_message message = next();
        struct order order;

        if (message.sender != PF_PEER_HOST) {
            follow(&message);
            continue;
        }
        memcpy(&order, message.payload, sizeof order);
        lead(&order, done);
        done += order.rounds;
        PF_CHECK(pf_send_inline(PF_PEER_HOST, &done, sizeof done, 0) == PF_OK);
        if (order.last) {
            PF_CHECK(pf_send_inline(other, "", 0, LAST) == PF_OK);
            return 0;
        }
    }
}

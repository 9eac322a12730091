/* SPDX-License-Identifier: Apache-2.0
 *
 * Does what the test says, step by step, and shows what came of it: see tests/kvm/puppets.py.
 *
 * The test writes descriptors into the desk, a piece of this guest's private memory, and sends an order inline. Messages
 * from others are taken as they come and kept on the desk, for the test to read. */
#include "pf.h"

enum order {
    ORDER_TRANSMIT = 1, /* put `count` descriptors of the desk into the ring, ring once, copy the answers back */
    ORDER_READ = 2,     /* the first word of `count` pages from `address` on, into the desk */
    ORDER_WRITE = 3,    /* `value`, and more by one for each page, into the first word of the same */
    ORDER_EXIT = 4,     /* with `value` */
    ORDER_IDLE = 5,     /* wait for a notice, taking no message */
    ORDER_SPIN = 6,     /* for ever, reading the word at `address` if there is one */
    ORDER_DIRECT = 7,   /* a DIRECT hypercall: address, count, and `value` as the attributes */
    ORDER_WAIT = 8,     /* a bare wait: `value` as wait_for, `address` as wait_peer, `count` us (all bits: for ever);
                         * the upper half of `value` is the number of notices that it has not seen */
    ORDER_ROOM = 9,     /* pf_wait_room: peer `value`, `count` us */
    ORDER_DESK = 10,    /* from now on take orders from the desk, and messages only when told to; never answered */
    ORDER_TAKE = 11,    /* take at most `count` messages, and keep them */
    ORDER_GATHER = 12,  /* replace `count` addresses on the desk by the words there */
    ORDER_SCATTER = 13, /* `count` pairs on the desk: an address, and a word to write there */
    ORDER_REPLY = 14,   /* pf_reply to the message kept at `address`, with `value` */
    ORDER_FLOOD = 15,   /* `count` inline messages to peer `value`, tagged 0, 1, ..., waiting for room */
    ORDER_SYSTEM = 16,  /* as a program for Linux: the system call `count`, with the desk's first six words */
};

#define KEPT 512

struct order_message {
    uint32_t order, count;
    uint64_t address, value;
};

struct desk {
    int64_t result;
    uint64_t kept;                 /* messages from others so far; the n-th is at n % KEPT */
    pf_message descriptors[PF_TX_ENTRIES];
    uint64_t words[1024];
    pf_message messages[KEPT];
    uint64_t served;               /* orders from the desk that have been obeyed */
    struct order_message next;     /* the one to be obeyed at the next host notice */
};

static struct desk desk;

static int64_t transmit(uint32_t count)
{
    uint32_t first = PF->tx_tail;

    for (uint32_t i = 0; i < count; i++)
        PF_CHECK(pf_post(&desk.descriptors[i]) == PF_OK);
    int result = pf_flush();

    for (uint32_t i = 0; i < count; i++)
        memcpy(&desk.descriptors[i], (const void *)&PF->tx[(first + i) % PF_TX_ENTRIES], sizeof(pf_message));
    return result;
}

static int64_t hypercall(uint64_t address, uint64_t pages, uint64_t attributes)
{
    int64_t result;

    if (PF->doorbell == PF_DOORBELL_VMCALL)
        __asm__ volatile("vmcall" : "=a"(result) : "a"((uint64_t)PF_HYPERCALL), "b"(address), "c"(pages), "d"(attributes)
                         : "memory");
    else
        __asm__ volatile("vmmcall" : "=a"(result) : "a"((uint64_t)PF_HYPERCALL), "b"(address), "c"(pages), "d"(attributes)
                         : "memory");
    return result;
}

static int64_t bare_wait(uint64_t wait_for, uint32_t peer, uint64_t timeout_us)
{
    PF->wait_for = (uint32_t)wait_for;
    PF->wait_peer = peer;
    PF->notices_seen = PF->notice_count - (uint32_t)(wait_for >> 32);
    PF->wait_timeout_us = timeout_us;
    pf_ring(PF_BELL_WAIT);
    return PF->bell_status;
}

#if __STDC_HOSTED__
static int64_t system_call(uint32_t number, const uint64_t *word)
{
    register uint64_t r10 __asm__("r10") = word[3];
    register uint64_t r8 __asm__("r8") = word[4];
    register uint64_t r9 __asm__("r9") = word[5];
    int64_t result;

    __asm__ volatile("syscall" : "=a"(result)
                     : "a"((uint64_t)number), "D"(word[0]), "S"(word[1]), "d"(word[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#endif

static uint64_t microseconds(uint32_t count)
{
    return count == UINT32_MAX ? PF_FOREVER : count;
}

static void keep(const pf_message *message)
{
    memcpy(&desk.messages[desk.kept++ % KEPT], message, sizeof *message);
}

static int64_t take(uint32_t count)
{
    pf_message message;

    while (count-- && pf_receive(&message, 0) == PF_OK)
        keep(&message);
    return 0;
}

/* Sends as one must where both sides send: when the queue is full, room or a message is waited for, and taken. */
static int64_t flood(uint32_t peer, uint32_t count)
{
    pf_message message;

    for (uint64_t i = 0; i < count; i++) {
        int status;

        while ((status = pf_send_inline(peer, &i, sizeof i, i)) == PF_E_QUEUE_FULL) {
            status = pf_wait_room(peer, PF_FOREVER);
            if (status == PF_PENDING && pf_receive(&message, 0) == PF_OK)
                keep(&message);
            else if (status != PF_OK)
                return status;
        }
        if (status != PF_OK)
            return status;
    }
    return PF_OK;
}

static int64_t obey(const struct order_message *order);

/* Each host notice is an order; any other notice is slept through. */
__attribute__((noreturn)) static void serve_desk(void)
{
    uint32_t seen = PF->host_notices;

    for (;;) {
        PF->notices_seen = PF->notice_count; /* before looking, so that nothing is missed */
        if (PF->host_notices == seen) {
            PF->wait_for = PF_WAIT_NOTICE;
            PF->wait_timeout_us = PF_FOREVER;
            pf_ring(PF_BELL_WAIT);
            continue;
        }
        seen = PF->host_notices;
        desk.result = obey(&desk.next);
        desk.served++;
    }
}

static int64_t obey(const struct order_message *order)
{
    volatile uint64_t *word = (volatile uint64_t *)order->address;
    const uint64_t step = PF_PAGE_SIZE / sizeof *word;

    switch (order->order) {
    case ORDER_TRANSMIT:
        return transmit(order->count);
    case ORDER_READ:
        for (uint32_t i = 0; i < order->count; i++)
            desk.words[i] = word[i * step];
        return 0;
    case ORDER_WRITE:
        for (uint32_t i = 0; i < order->count; i++)
            word[i * step] = order->value + i;
        return 0;
    case ORDER_EXIT:
        pf_exit((int)order->value);
    case ORDER_IDLE:
        return bare_wait(PF_WAIT_NOTICE, 0, PF_FOREVER);
    case ORDER_SPIN:
        for (;;)
            order->address ? (void)*word : (void)0;
    case ORDER_DIRECT:
        return hypercall(order->address, order->count, order->value);
    case ORDER_WAIT:
        return bare_wait(order->value, (uint32_t)order->address, microseconds(order->count));
    case ORDER_ROOM:
        return pf_wait_room((uint32_t)order->value, microseconds(order->count));
    case ORDER_REPLY:
        return pf_reply(&desk.messages[order->address % KEPT], &order->value, sizeof order->value);
    case ORDER_FLOOD:
        return flood((uint32_t)order->value, order->count);
    case ORDER_DESK:
        serve_desk();
    case ORDER_TAKE:
        return take(order->count);
    case ORDER_GATHER:
        for (uint32_t i = 0; i < order->count; i++)
            desk.words[i] = *(volatile uint64_t *)desk.words[i];
        return 0;
    case ORDER_SCATTER:
        for (uint32_t i = 0; i < 2 * order->count; i += 2)
            *(volatile uint64_t *)desk.words[i] = desk.words[i + 1];
        return 0;
#if __STDC_HOSTED__
    case ORDER_SYSTEM:
        return system_call(order->count, desk.words);
#endif
    }
    return -100;
}

int main(void)
{
    uint64_t where = (uintptr_t)&desk;
    struct order_message order;
    pf_message message;

    PF_CHECK(pf_send_inline(PF_PEER_HOST, &where, sizeof where, 0) == PF_OK);
    for (;;) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        if (message.sender != PF_PEER_HOST || message.tag != 0x6f72646572) { /* "order" */
            keep(&message);
            continue;
        }
        memcpy(&order, message.payload, sizeof order);
        desk.result = obey(&order);
        PF_CHECK(pf_send_inline(PF_PEER_HOST, "", 0, 0x646f6e65) == PF_OK); /* "done" */
    }
}

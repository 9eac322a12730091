/* SPDX-License-Identifier: Apache-2.0
 * Doorbell, rings and messages. */
#include "pf.h"

/* ---- The doorbell ---- */

static bool by_hypercall(void)
{
    return PF->doorbell >= PF_DOORBELL_VMCALL;
}

/* One hypercall, after a store of `head` to `*tx_head` by the instruction before it. */
static int64_t hypercall(uint64_t gpa, uint64_t pages, uint64_t attributes, uint32_t head, volatile uint32_t *tx_head)
{
    int64_t result;

    if (PF->doorbell == PF_DOORBELL_VMCALL)
        __asm__ volatile("movl %5, (%6)\n\tvmcall"
                         : "=a"(result)
                         : "a"((uint64_t)PF_HYPERCALL), "b"(gpa), "c"(pages), "d"(attributes), "r"(head), "r"(tx_head)
                         : "memory");
    else
        __asm__ volatile("movl %5, (%6)\n\tvmmcall"
                         : "=a"(result)
                         : "a"((uint64_t)PF_HYPERCALL), "b"(gpa), "c"(pages), "d"(attributes), "r"(head), "r"(tx_head)
                         : "memory");
    return result;
}

static uint32_t posted; /* descriptors put into the ring, rung or not */

void pf_ring(uint32_t bell)
{
    uint32_t head = PF->tx_head;

    if (by_hypercall())
        hypercall(0, 1, bell, head, &PF->tx_head);
    else if (PF->doorbell == PF_DOORBELL_PIO)
        __asm__ volatile("outl %0, %w1" : : "a"(bell), "d"(PF_DOORBELL_PORT) : "memory");
    else
        __asm__ volatile("movl %0, (%1)" : : "r"(bell), "r"((uintptr_t)PF_DOORBELL_GPA) : "memory");
}

/* Publishes the transmit ring and exits with the very next instruction: nothing of the sender runs between
 * placing the message and the exit. */
static void publish(uint32_t head, uint32_t bell)
{
    volatile uint32_t *tx_head = &PF->tx_head;

    if (by_hypercall())
        hypercall(0, 1, bell, head, tx_head);
    else if (PF->doorbell == PF_DOORBELL_PIO)
        __asm__ volatile("movl %2, (%3)\n\toutl %0, %w1"
                         : : "a"(bell), "d"(PF_DOORBELL_PORT), "r"(head), "r"(tx_head) : "memory");
    else
        __asm__ volatile("movl %2, (%3)\n\tmovl %0, (%1)"
                         : : "r"(bell), "r"((uintptr_t)PF_DOORBELL_GPA), "r"(head), "r"(tx_head) : "memory");
}

/* ---- Sending ---- */

static pf_message *tx_entry(uint32_t index)
{
    return (pf_message *)&PF->tx[index % PF_TX_ENTRIES];
}

int pf_post(const pf_message *message)
{
    if (posted - PF->tx_tail >= PF_TX_ENTRIES)
        return PF_E_RING;
    pf_message *entry = tx_entry(posted);
    memcpy(entry, message, sizeof *entry);
    entry->status = PF_PENDING;
    posted++;
    return PF_OK;
}

/* Rings for what has been posted; returns how many of it were refused, or the doorbell's own status. */
static int flush(uint32_t bell)
{
    uint32_t first = PF->tx_tail;
    int refused = 0;

    publish(posted, bell);
    if (PF->bell_status != PF_OK)
        return PF->bell_status;
    for (uint32_t i = first; i != posted; i++)
        refused += ((volatile pf_message *)tx_entry(i))->status != PF_OK;
    return refused;
}

int pf_flush(void)
{
    return flush(PF_BELL_TRANSMIT);
}

int pf_transmit(pf_message *message)
{
    uint32_t index = posted;
    int status = pf_post(message);

    if (status != PF_OK)
        return status;
    publish(posted, PF_BELL_TRANSMIT);
    volatile pf_message *entry = tx_entry(index);
    message->status = entry->status;
    message->sender = entry->sender;
    message->message = entry->message;
    return message->status;
}

/* An operation on one extent, or none, everything else zero. */
static void fill(pf_message *message, uint16_t operation, const void *address, uint64_t pages)
{
    memset(message, 0, sizeof *message);
    message->operation = operation;
    message->extent_count = pages != 0;
    message->extents[0].gpa = (uintptr_t)address;
    message->extents[0].pages = (uint32_t)pages;
}

/* Where the doorbell is a hypercall, and peer, tag and length fit, an operation goes in registers. */
static bool fits_registers(const pf_message *message)
{
    uint64_t bytes = (uint64_t)message->extents[0].pages * PF_PAGE_SIZE;

    return by_hypercall() && message->receiver <= PF_DIRECT_PEER_MAX && message->tag <= PF_DIRECT_TAG_MAX && bytes
        && message->length == bytes && message->extents[0].gpa % PF_PAGE_SIZE == 0;
}

#define KVM_EINVAL 22

static int direct(const pf_message *message)
{
    uint64_t attributes = PF_BELL_DIRECT | (uint64_t)message->operation << 8 | (uint64_t)message->receiver << 16
        | message->tag << 32;

    if (message->flags & PF_FLAG_READONLY)
        attributes |= PF_DIRECT_READONLY;
    const struct pf_extent *extent = &message->extents[0];
    int64_t status = hypercall(extent->gpa, extent->pages, attributes, PF->tx_head, &PF->tx_head);

    return status == -KVM_EINVAL ? PF_E_RANGE : (int)status; /* what overflows the kernel refuses by itself */
}

/* An operation on one extent, in registers or by the transmit ring. */
static int operate(uint16_t operation, uint32_t peer, const void *address, uint64_t pages, uint64_t length,
                   uint64_t tag, uint16_t flags)
{
    pf_message message;

    if (pages == 0 || pages != (uint32_t)pages)
        return PF_E_RANGE;
    fill(&message, operation, address, pages);
    message.flags = flags;
    message.receiver = peer;
    message.length = length;
    message.tag = tag;
    return fits_registers(&message) ? direct(&message) : pf_transmit(&message);
}

int pf_send(uint32_t peer, void *address, uint64_t pages, uint64_t length, uint64_t tag)
{
    return operate(PF_OP_SEND, peer, address, pages, length, tag, 0);
}

int pf_lend(uint32_t peer, void *address, uint64_t pages, uint64_t tag, uint16_t flags)
{
    return operate(PF_OP_LEND, peer, address, pages, pages * PF_PAGE_SIZE, tag, flags);
}

int pf_share(uint32_t peer, void *address, uint64_t pages, uint64_t tag, uint16_t flags)
{
    return operate(PF_OP_SHARE, peer, address, pages, pages * PF_PAGE_SIZE, tag, flags);
}

int pf_return(uint32_t owner, void *address, uint64_t pages, uint64_t tag)
{
    return operate(PF_OP_RETURN, owner, address, pages, pages * PF_PAGE_SIZE, tag, 0);
}

int pf_reclaim(void *address, uint64_t pages)
{
    return operate(PF_OP_RECLAIM, 0, address, pages, pages * PF_PAGE_SIZE, 0, 0);
}

int pf_exchange(uint32_t peer, void *address, uint64_t pages, uint64_t length, uint64_t tag)
{
    return operate(PF_OP_EXCHANGE, peer, address, pages, length, tag, 0);
}

int pf_release(void *address, uint64_t pages)
{
    return operate(PF_OP_RELEASE, 0, address, pages, pages * PF_PAGE_SIZE, 0, 0);
}

/* Transmits a message and takes the monitor's answer whole. */
static int ask(pf_message *message)
{
    uint32_t index = posted;
    int status = pf_transmit(message);

    if (status == PF_OK)
        memcpy(message, (const void *)tx_entry(index), sizeof *message);
    return status;
}

int pf_alloc(uint64_t pages, void **address)
{
    pf_message message;

    if (pages == 0 || pages != (uint32_t)pages)
        return PF_E_RANGE;
    fill(&message, PF_OP_ALLOC, NULL, pages);
    int status = ask(&message);

    *address = status == PF_OK ? pf_data(&message) : NULL;
    return status;
}

int pf_query(void *address, uint64_t pages, struct pf_answer *answer)
{
    pf_message message;

    if (pages != (uint32_t)pages)
        return PF_E_RANGE;
    fill(&message, PF_OP_QUERY, address, pages);
    int status = ask(&message);

    if (status == PF_OK)
        memcpy(answer, message.payload, sizeof *answer);
    return status;
}

int pf_send_inline(uint32_t peer, const void *data, size_t bytes, uint64_t tag)
{
    pf_message message = {
        .operation = PF_OP_SEND, .receiver = peer, .tag = tag, .payload_length = (uint16_t)bytes,
    };

    if (bytes > PF_PAYLOAD_MAX)
        return PF_E_LENGTH;
    memcpy(message.payload, data, bytes);
    return pf_transmit(&message);
}

int pf_reply(const pf_message *request, const void *payload, size_t bytes)
{
    pf_message message;

    if (bytes > PF_PAYLOAD_MAX)
        return PF_E_LENGTH;
    memcpy(&message, request, sizeof message);
    bool borrowed = request->operation == PF_OP_LEND || request->operation == PF_OP_SHARE;

    message.operation = borrowed ? PF_OP_RETURN : PF_OP_SEND;
    message.flags = 0;
    message.receiver = request->sender;
    message.payload_length = (uint16_t)bytes;
    memcpy(message.payload, payload, bytes);
    return pf_transmit(&message);
}

/* Lets go of the first pages of an extent that are one thing to this machine; returns how many these are. */
static uint64_t drop_some(uint64_t gpa, uint64_t pages)
{
    struct pf_answer about;
    void *address = (void *)gpa;

    if (pf_query(address, pages, &about) != PF_OK || about.pages == 0)
        return pages;
    if (about.hold == PF_HOLD_BORROWED || about.hold == PF_HOLD_VIEWED)
        pf_return(about.owner, address, about.pages, 0);
    else if (about.hold == PF_HOLD_OWNED || about.hold == PF_HOLD_REVOKED)
        pf_release(address, about.pages);
    return about.pages;
}

void pf_drop(const pf_message *message)
{
    for (uint32_t i = 0; i < message->extent_count && i < PF_EXTENTS_MAX; i++) {
        uint64_t gpa = message->extents[i].gpa, left = message->extents[i].pages;
        while (left) {
            uint64_t done = drop_some(gpa, left);
            gpa += done * PF_PAGE_SIZE;
            left -= done < left ? done : left;
        }
    }
}

/* ---- Receiving ---- */

static uint32_t seen; /* the notice_count that pf_noticed() has told of */

static void wait_for_what(uint32_t wait_for, uint32_t peer, uint64_t timeout_us)
{
    PF->wait_for = wait_for;
    PF->wait_peer = peer;
    PF->notices_seen = seen;
    PF->wait_timeout_us = timeout_us;
}

static int wait(uint32_t wait_for, uint32_t peer, uint64_t timeout_us)
{
    wait_for_what(wait_for, peer, timeout_us);
    pf_ring(PF_BELL_WAIT);
    return PF->bell_status;
}

int pf_flush_wait(uint32_t for_what, uint32_t peer, uint64_t timeout_us)
{
    wait_for_what(for_what, peer, timeout_us);
    return flush(PF_BELL_TRANSMIT_WAIT);
}

int pf_wait(uint64_t timeout_us)
{
    return wait(PF_WAIT_MESSAGE | PF_WAIT_NOTICE, 0, timeout_us);
}

bool pf_noticed(void)
{
    uint32_t now = PF->notice_count;
    bool news = now != seen;

    seen = now;
    return news;
}

int pf_wait_room(uint32_t peer, uint64_t timeout_us)
{
    for (;;) {
        if (pf_alive(peer) && pf_has_room(peer))
            return PF_OK;
        int status = wait(PF_WAIT_MESSAGE | PF_WAIT_ROOM, peer, timeout_us);
        if (status != PF_OK)
            return status;
        if (PF->rx_tail != PF->rx_head && !pf_has_room(peer))
            return PF_PENDING;
    }
}

int pf_wait_room_only(uint32_t peer, uint64_t timeout_us)
{
    int status = PF_OK;

    while (status == PF_OK && !(pf_alive(peer) && pf_has_room(peer)))
        status = wait(PF_WAIT_ROOM, peer, timeout_us);
    return status;
}

int pf_receive(pf_message *message, uint64_t timeout_us)
{
    while (PF->rx_tail == PF->rx_head) {
        int status = wait(PF_WAIT_MESSAGE, 0, timeout_us);
        if (status != PF_OK)
            return status;
    }
    memcpy(message, (const void *)&PF->rx[PF->rx_tail % PF_RX_ENTRIES], sizeof *message);
    PF->rx_tail = PF->rx_tail + 1;
    return PF_OK;
}

int pf_call(pf_message *message, uint64_t timeout_us)
{
    uint32_t index = posted;
    int status = pf_post(message);

    if (status != PF_OK)
        return status;
    status = pf_flush_wait(PF_WAIT_MESSAGE, 0, timeout_us);
    if (status > 0)
        status = ((volatile pf_message *)tx_entry(index))->status;
    return status != PF_OK ? status : pf_receive(message, timeout_us);
}

/* ---- Peers ---- */

static uint32_t flags_of(uint32_t id)
{
    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].id == id)
            return PF->peers[i].flags;
    return 0;
}

uint32_t pf_peer(const char *name)
{
    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (strcmp((const char *)PF->peers[i].name, name) == 0)
            return PF->peers[i].id;
    return PF_NO_PEER;
}

bool pf_alive(uint32_t peer)
{
    return flags_of(peer) & PF_PEER_ALIVE;
}

bool pf_has_room(uint32_t peer)
{
    return flags_of(peer) & PF_PEER_ROOM;
}

/* ---- The machine ---- */

void pf_progress(uint64_t done, uint64_t total)
{
    PF->progress_total = total;
    PF->progress_done = done;
}

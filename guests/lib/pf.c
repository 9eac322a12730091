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

int pf_flush(void)
{
    uint32_t first = PF->tx_tail;
    int refused = 0;

    publish(posted, PF_BELL_TRANSMIT);
    if (PF->bell_status != PF_OK)
        return PF->bell_status;
    for (uint32_t i = first; i != posted; i++)
        refused += ((volatile pf_message *)tx_entry(i))->status != PF_OK;
    return refused;
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

/* An operation on one extent, everything else zero. */
static void fill(pf_message *message, uint16_t operation, const void *address, uint64_t pages)
{
    memset(message, 0, sizeof *message);
    message->operation = operation;
    message->extent_count = 1;
    message->extents[0].gpa = (uintptr_t)address;
    message->extents[0].pages = (uint32_t)pages;
}

/* Where the doorbell is a hypercall, and peer, tag and length fit, an operation goes in registers. */
static bool fits_registers(uint32_t peer, const void *address, uint64_t pages, uint64_t length, uint64_t tag)
{
    return by_hypercall() && peer <= PF_DIRECT_PEER_MAX && tag <= PF_DIRECT_TAG_MAX && pages
        && length == pages * PF_PAGE_SIZE && (uintptr_t)address % PF_PAGE_SIZE == 0;
}

static int direct(uint8_t operation, uint32_t peer, const void *address, uint64_t pages, uint64_t tag)
{
    uint64_t attributes = PF_BELL_DIRECT | (uint64_t)operation << 8 | (uint64_t)peer << 16 | tag << 32;

    int64_t status = hypercall((uintptr_t)address, pages, attributes, PF->tx_head, &PF->tx_head);

    return status < PF_E_BELL ? PF_E_RANGE : (int)status; /* the kernel refuses what overflows by itself */
}

int pf_send(uint32_t peer, void *address, uint64_t pages, uint64_t length, uint64_t tag)
{
    pf_message message;

    if (pages != (uint32_t)pages)
        return PF_E_RANGE;
    if (fits_registers(peer, address, pages, length, tag))
        return direct(PF_OP_SEND, peer, address, pages, tag);
    fill(&message, PF_OP_SEND, address, pages);
    message.receiver = peer;
    message.length = length;
    message.tag = tag;
    return pf_transmit(&message);
}

int pf_release(void *address, uint64_t pages)
{
    pf_message message;

    if (pages != (uint32_t)pages)
        return PF_E_RANGE;
    if (fits_registers(0, address, pages, pages * PF_PAGE_SIZE, 0))
        return direct(PF_OP_RELEASE, 0, address, pages, 0);
    fill(&message, PF_OP_RELEASE, address, pages);
    return pf_transmit(&message);
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
    message.operation = PF_OP_SEND;
    message.receiver = request->sender;
    message.payload_length = (uint16_t)bytes;
    memcpy(message.payload, payload, bytes);
    return pf_transmit(&message);
}

/* ---- Receiving ---- */

int pf_wait(uint64_t timeout_us)
{
    PF->wait_timeout_us = timeout_us;
    pf_ring(PF_BELL_WAIT);
    return PF->bell_status;
}

int pf_receive(pf_message *message, uint64_t timeout_us)
{
    while (PF->rx_tail == PF->rx_head) {
        int status = pf_wait(timeout_us);
        if (status != PF_OK)
            return status;
    }
    memcpy(message, (const void *)&PF->rx[PF->rx_tail % PF_RX_ENTRIES], sizeof *message);
    PF->rx_tail = PF->rx_tail + 1;
    return PF_OK;
}

/* ---- Peers ---- */

static const struct pf_peer *find_peer(uint32_t id)
{
    for (uint32_t i = 0; i < PF->peer_count; i++)
        if (PF->peers[i].id == id)
            return (const struct pf_peer *)&PF->peers[i];
    return NULL;
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
    const struct pf_peer *entry = find_peer(peer);

    return entry && (((volatile const struct pf_peer *)entry)->flags & PF_PEER_ALIVE);
}

/* ---- The machine ---- */

void pf_exit(int code)
{
    PF->exit_code = code;
    for (;;)
        pf_ring(PF_BELL_EXIT);
}

static void say(const char *text, size_t bytes, uint32_t bell)
{
    PF->log_gpa = (uintptr_t)text;
    PF->log_length = (uint32_t)bytes;
    pf_ring(bell);
}

void pf_panic(const char *text)
{
    size_t bytes = strlen(text);

    for (;;)
        say(text, bytes < PF_LOG_MAX ? bytes : PF_LOG_MAX, PF_BELL_PANIC);
}

int pf_log(const char *text)
{
    size_t bytes = strlen(text);

    do {
        size_t part = bytes < PF_LOG_MAX ? bytes : PF_LOG_MAX;
        say(text, part, PF_BELL_LOG);
        if (PF->bell_status != PF_OK)
            return PF->bell_status;
        text += part;
        bytes -= part;
    } while (bytes);
    return PF_OK;
}

void pf_progress(uint64_t done, uint64_t total)
{
    PF->progress_total = total;
    PF->progress_done = done;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The side of `pageferry bench` that has the clock: does what the host asks for (bench.h), with bench_receiver.c. */
#include "bench.h"
#include "pf.h"

#define INLINE_BYTES 64

static uint64_t samples[BENCH_SAMPLES];
static struct bench_command command;

static uint64_t ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/* Writes a word of each page, so that no page is dealt with that never was there. Not read first: older kernels (6.1)
 * give what has only been read one huge page of zeros, and small pages when it is written to. */
static void touch(volatile uint64_t *page, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++)
        page[i * PF_PAGE_SIZE / sizeof *page] = i;
}

static void *fresh(uint64_t pages)
{
    void *address;

    PF_CHECK(pf_alloc(pages, &address) == PF_OK);
    touch(address, pages);
    return address;
}

static pf_message about(uint16_t operation, uint64_t tag, const void *address, uint64_t pages)
{
    pf_message message = {
        .operation = operation, .receiver = command.peer, .tag = tag | (command.touch ? BENCH_TOUCH : 0),
    };

    message.extent_count = pages != 0;
    message.extents[0].gpa = (uintptr_t)address;
    message.extents[0].pages = (uint32_t)pages;
    message.length = (command.used ? command.used : pages) * PF_PAGE_SIZE;
    return message;
}

/* Waits, with what has been posted, until the receiver's queue has room: until it has taken what filled it. */
static void flush_until_taken(void)
{
    PF_CHECK(pf_flush_wait(PF_WAIT_ROOM, command.peer, PF_FOREVER) == PF_OK);
}

static void send_inline(void)
{
    pf_message message = about(PF_OP_SEND, BENCH_KEEP, NULL, 0);

    message.payload_length = INLINE_BYTES;
    for (uint32_t i = 0; i < command.rounds; i++) {
        uint64_t start = ticks();

        message.payload[0] = (uint8_t)i;
        PF_CHECK(pf_post(&message) == PF_OK);
        flush_until_taken();
        samples[i] = ticks() - start;
    }
}

/* Has the receiver send back what it has kept, and takes it. */
static void take_back(uint64_t pages)
{
    pf_message message = about(PF_OP_SEND, BENCH_RETURN, NULL, 0);
    uint64_t back = 0;

    message.payload_length = 1;
    PF_CHECK(pf_transmit(&message) == PF_OK);
    while (back < pages) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        for (uint32_t i = 0; i < message.extent_count; i++) {
            back += message.extents[i].pages;
            PF_CHECK(pf_release((void *)message.extents[i].gpa, message.extents[i].pages) == PF_OK);
        }
    }
}

static void send_pages(void)
{
    char *pool = fresh((uint64_t)command.rounds * command.pages);

    for (uint32_t i = 0; i < command.rounds; i++) {
        uint64_t start = ticks();
        pf_message message = about(PF_OP_SEND, BENCH_KEEP, pool, command.pages);

        PF_CHECK(pf_post(&message) == PF_OK);
        flush_until_taken();
        samples[i] = ticks() - start;
        pool += (uint64_t)command.pages * PF_PAGE_SIZE;
    }
    take_back((uint64_t)command.rounds * command.pages);
}

static void send_batches(void)
{
    uint64_t step = (1 + command.pages) * PF_PAGE_SIZE, pages = (uint64_t)command.batch * (1 + command.pages);

    for (uint32_t i = 0; i < command.rounds; i++) {
        char *pool = fresh(pages);
        uint64_t start = ticks();

        for (uint32_t j = 0; j < command.batch; j++) {
            pf_message message = about(PF_OP_SEND, BENCH_KEEP, pool + j * step, 1);

            PF_CHECK(pf_post(&message) == PF_OK);
        }
        flush_until_taken();
        samples[i] = ticks() - start;
        take_back(command.batch);
        for (uint32_t j = 0; command.pages && j < command.batch; j++)
            PF_CHECK(pf_release(pool + j * step + PF_PAGE_SIZE, command.pages) == PF_OK);
    }
}

/* Sends, lends or shares an extent and has it back, by whatever message says so. */
static void there_and_back(uint16_t operation)
{
    void *extent = fresh(command.pages);
    uint64_t pages = command.pages;

    for (uint32_t i = 0; i < command.rounds; i++) {
        uint64_t start = ticks();
        pf_message message = about(operation, BENCH_BACK, extent, pages);

        message.flags = operation == PF_OP_SHARE ? PF_FLAG_READONLY : 0;
        PF_CHECK(pf_call(&message, PF_FOREVER) == PF_OK);
        PF_CHECK(message.extent_count == 1);
        extent = pf_data(&message);
        if (command.touch && operation == PF_OP_SEND)
            touch(extent, message.length / PF_PAGE_SIZE);
        samples[i] = ticks() - start;
    }
    PF_CHECK(pf_release(extent, pages) == PF_OK);
}

static void stream(void)
{
    pf_message message = about(PF_OP_SEND, BENCH_KEEP, NULL, 0);
    uint64_t start = ticks();

    message.payload_length = INLINE_BYTES;
    for (uint32_t i = 0; i < command.rounds; i++) {
        int status = pf_transmit(&message);

        if (status == PF_E_QUEUE_FULL) {
            PF_CHECK(pf_wait_room_only(command.peer, PF_FOREVER) == PF_OK);
            i--;
        } else
            PF_CHECK(status == PF_OK);
    }
    samples[0] = ticks() - start;
}

int main(void)
{
    pf_message message;

    while (pf_receive(&message, PF_FOREVER) == PF_OK && message.payload_length == sizeof command) {
        memcpy(&command, message.payload, sizeof command);
        struct bench_answer answer = {(uintptr_t)samples, command.rounds};

        PF_CHECK(command.rounds <= BENCH_SAMPLES || command.kind == BENCH_STREAM);
        switch (command.kind) {
        case BENCH_INLINE: send_inline(); break;
        case BENCH_PAGES: send_pages(); break;
        case BENCH_PINGPONG: there_and_back(PF_OP_SEND); break;
        case BENCH_BATCH: send_batches(); break;
        case BENCH_LEND: there_and_back(PF_OP_LEND); break;
        case BENCH_SHARE: there_and_back(PF_OP_SHARE); break;
        case BENCH_STREAM: stream(); answer.samples = 1; break;
        default: pf_panic("no such kind of bench");
        }
        PF_CHECK(pf_send_inline(PF_PEER_HOST, &answer, sizeof answer, 0) == PF_OK);
    }
    return 0;
}

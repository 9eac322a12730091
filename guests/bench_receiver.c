/* SPDX-License-Identifier: Apache-2.0
 *
 * The other side of `pageferry bench`: takes what bench_sender.c sends, as its tag says (bench.h). Answers go out with
 * the doorbell that waits for more. */
#include "bench.h"
#include "pf.h"

static struct pf_extent kept[BENCH_SAMPLES];
static uint32_t count;
static volatile uint64_t read_last;

static void read_all(const pf_message *message)
{
    const volatile uint64_t *page = pf_data(message);

    for (uint64_t i = 0; i < message->length / PF_PAGE_SIZE; i++)
        read_last = page[i * PF_PAGE_SIZE / sizeof *page];
}

/* Joins what is adjacent, and sends all of it, as many extents in each message as there may be. */
static void send_kept(uint32_t to)
{
    for (uint32_t i = 0; i < count;) {
        pf_message message = {.operation = PF_OP_SEND, .receiver = to};
        uint16_t extents = 0;

        while (i < count && extents < PF_EXTENTS_MAX) {
            struct pf_extent *extent = &message.extents[extents++];
            for (*extent = kept[i++]; i < count && kept[i].gpa == extent->gpa + extent->pages * PF_PAGE_SIZE; i++)
                extent->pages += kept[i].pages;
        }
        message.extent_count = extents;
        PF_CHECK(pf_transmit(&message) == PF_OK);
    }
    count = 0;
}

static void take(pf_message *message)
{
    if (message->tag & BENCH_TOUCH && message->extent_count)
        read_all(message);
    switch (message->tag & ~(uint64_t)BENCH_TOUCH) {
    case BENCH_KEEP:
        if (message->extent_count) {
            PF_CHECK(count < BENCH_SAMPLES);
            kept[count++] = message->extents[0];
        }
        break;
    case BENCH_BACK:
        message->operation = message->operation == PF_OP_SEND ? PF_OP_SEND : PF_OP_RETURN;
        message->flags = 0;
        message->receiver = message->sender;
        PF_CHECK(pf_post(message) == PF_OK);
        break;
    case BENCH_RETURN:
        send_kept(message->sender);
        break;
    }
}

int main(void)
{
    pf_message message;

    for (;;) {
        while (PF->rx_tail != PF->rx_head) {
            PF_CHECK(pf_receive(&message, 0) == PF_OK);
            take(&message);
        }
        PF_CHECK(pf_flush_wait(PF_WAIT_MESSAGE, 0, PF_FOREVER) == PF_OK);
    }
}

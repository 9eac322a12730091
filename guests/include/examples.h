/* SPDX-License-Identifier: Apache-2.0
 *
 * What the example guests agree on among themselves, and what several of them do. */
#ifndef PF_EXAMPLES_H
#define PF_EXAMPLES_H

#include "pf.h"

/* ---- config_owner.c, config_reader.c: the page that they share ---- */

struct config {
    uint64_t version;
    uint64_t rate;
};

enum config_tag {
    CONFIG_SHARED = 1,  /* owner -> reader: here it is */
    CONFIG_SEEN = 2,    /* reader -> owner: I have read it */
    CONFIG_CHANGED = 3, /* owner -> reader: read it again */
};

/* ---- worker.c: it is lent 32-bit numbers, and gives them back sorted, with this as the payload ---- */

struct work_result {
    uint64_t count;
    uint64_t sum;
};

#define WORK_NUMBERS(pages) ((pages) * PF_PAGE_SIZE / sizeof(uint32_t))

/* Fills a buffer with numbers that look random; returns their sum. */
static inline uint64_t work_fill(uint32_t *numbers, uint64_t count)
{
    uint64_t sum = 0;
    uint32_t number = 1;

    for (uint64_t i = 0; i < count; i++) {
        number = number * 1664525 + 1013904223;
        sum += numbers[i] = number;
    }
    return sum;
}

static inline bool work_sorted(const uint32_t *numbers, uint64_t count)
{
    for (uint64_t i = 1; i < count; i++)
        if (numbers[i - 1] > numbers[i])
            return false;
    return true;
}

/* ---- stage_source.c, stage_filter.c, stage_sink.c: a block's number is its tag, an empty message the end ---- */

#define STAGE_BLOCKS 16
#define STAGE_PAGES 1
#define STAGE_NUMBERS (STAGE_PAGES * PF_PAGE_SIZE / sizeof(uint32_t))

/* ---- Peers ---- */

#define EXAMPLE_PEERS 16

/* Copies from the peer table every machine that this one may send to; returns how many there are. */
static inline uint32_t example_peers(struct pf_peer peers[EXAMPLE_PEERS])
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < PF->peer_count && count < EXAMPLE_PEERS; i++) {
        const volatile struct pf_peer *peer = &PF->peers[i];
        if (peer->id != PF_PEER_HOST && peer->flags & PF_PEER_SEND)
            memcpy(&peers[count++], (const void *)peer, sizeof *peer);
    }
    return count;
}

/* Waits for a message of `operation` from `sender`, if that is not PF_NO_PEER; drops whatever else comes: a machine that
 * stops at what others send can be stopped by them. */
static inline int example_receive(pf_message *message, uint16_t operation, uint32_t sender, uint64_t timeout_us)
{
    int status;

    while ((status = pf_receive(message, timeout_us)) == PF_OK) {
        if (message->operation == operation && (sender == PF_NO_PEER || message->sender == sender))
            break;
        if (message->operation != PF_OP_RETURN && message->operation != PF_OP_UNDELIVERED)
            pf_drop(message); /* those bring back what is one's own */
    }
    return status;
}

/* Whether a message has lent one extent that may be written to, as long as its owner does not reclaim it. */
static inline bool example_lent(const pf_message *message)
{
    return message->operation == PF_OP_LEND && message->extent_count == 1 && !(message->flags & PF_FLAG_READONLY);
}

/* Tells a worker that there is nothing more to do. One that has stopped knows. */
static inline void example_end(uint32_t peer)
{
    pf_send_inline(peer, "", 0, 0); /* one whose queue is full has other things to do than to listen */
}

#endif

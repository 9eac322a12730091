/* SPDX-License-Identifier: Apache-2.0
 *
 * The second of three stages: it changes each block in place and sends it on to "stage_sink", with the number and the
 * length that it came with. While the sink has no room it takes nothing, so that its own queue fills up, and the source
 * waits too: back-pressure goes against the stream, and no stage has to know of more than its neighbour. */
#include "examples.h"

static void pass_on(pf_message *message, uint32_t next)
{
    int status;

    message->receiver = next;
    while ((status = pf_transmit(message)) == PF_E_QUEUE_FULL)
        PF_CHECK(pf_wait_room_only(next, PF_FOREVER) == PF_OK);
    PF_CHECK(status == PF_OK);
}

int main(void)
{
    uint32_t sink = pf_peer("stage_sink");
    pf_message block;

    do {
        PF_CHECK(example_receive(&block, PF_OP_SEND, pf_peer("stage_source"), PF_FOREVER) == PF_OK);
        if (block.extent_count > 1) { /* not a block: these would not be where one expects them */
            pf_drop(&block);
            continue;
        }
        uint32_t *numbers = pf_data(&block);
        for (uint64_t i = 0; i < block.length / sizeof *numbers; i++)
            numbers[i] *= 2;
        pass_on(&block, sink); /* the empty one too: it is the last one's turn then */
    } while (block.extent_count);
    return 0;
}

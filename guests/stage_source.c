/* SPDX-License-Identifier: Apache-2.0
 *
 * The first of three stages: it fills blocks and sends them to "stage_filter", all from the same place. An exchange
 * sends the pages and has fresh ones there when it returns, so that the next block can be begun at once. When the
 * filter is behind, its queue is full: that is the time to wait, and the only one. */
#include "examples.h"

int main(void)
{
    uint32_t filter = pf_peer("stage_filter");
    uint32_t *numbers, waits = 0;
    void *buffer;

    PF_CHECK(pf_alloc(STAGE_PAGES, &buffer) == PF_OK);
    numbers = buffer;
    for (uint32_t block = 0; block < STAGE_BLOCKS; block++) {
        int status;

        PF_CHECK(numbers[0] == 0 && numbers[STAGE_NUMBERS - 1] == 0); /* never what was sent */
        for (uint32_t i = 0; i < STAGE_NUMBERS; i++)
            numbers[i] = block * STAGE_NUMBERS + i + 1;
        /* A refusal has changed nothing: the block is still here, to be sent again. */
        while ((status = pf_exchange(filter, buffer, STAGE_PAGES, sizeof *numbers * STAGE_NUMBERS, block))
               == PF_E_QUEUE_FULL) {
            waits++;
            PF_CHECK(pf_wait_room(filter, PF_FOREVER) == PF_OK);
        }
        PF_CHECK(status == PF_OK);
    }
    while (pf_send_inline(filter, "", 0, STAGE_BLOCKS) == PF_E_QUEUE_FULL)
        PF_CHECK(pf_wait_room(filter, PF_FOREVER) == PF_OK);
    pf_printf("%u blocks from one place; the filter had no room %u times", STAGE_BLOCKS, waits);
    return 0;
}

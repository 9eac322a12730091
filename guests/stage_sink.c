/* SPDX-License-Identifier: Apache-2.0
 *
 * The last of three stages: it checks each block, and gives its pages back to the pool, which stage_source has them
 * from. They are zeroed there: nobody sees what was in them. */
#include "examples.h"

int main(void)
{
    uint64_t next = 0, sum = 0;
    pf_message block;

    for (;;) {
        PF_CHECK(example_receive(&block, PF_OP_SEND, pf_peer("stage_filter"), PF_FOREVER) == PF_OK);
        if (!block.extent_count)
            break;
        PF_CHECK(block.tag == next); /* from one sender, in the order in which they were sent */
        const uint32_t *numbers = pf_data(&block);
        for (uint32_t i = 0; i < STAGE_NUMBERS; i++) {
            PF_CHECK(numbers[i] == 2 * (next * STAGE_NUMBERS + i + 1));
            sum += numbers[i];
        }
        PF_CHECK(pf_release(pf_data(&block), block.extents[0].pages) == PF_OK);
        next++;
    }
    PF_CHECK(next == STAGE_BLOCKS);
    pf_printf("%lu blocks, in order; the sum of all is %lu", next, sum);
    return 0;
}

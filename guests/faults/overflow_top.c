/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends extents whose ends are beyond 2^64, so that a sum that wraps would lie in its window.
 * Each must be refused, PF_E_RANGE.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

static int send(uint64_t gpa, uint32_t pages)
{
    pf_message message = {
        .operation = PF_OP_SEND, .receiver = pf_peer("peer"), .extent_count = 1,
        .extents = { { .gpa = gpa, .pages = pages } },
    };

    return pf_transmit(&message);
}

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    uint64_t gpa = page.extents[0].gpa, top = -(uint64_t)PF_PAGE_SIZE;

    PF_CHECK(send(top, 1) == PF_E_RANGE);
    PF_CHECK(send(top, 2) == PF_E_RANGE);
    PF_CHECK(send(top, (uint32_t)(gpa / PF_PAGE_SIZE) + 2) == PF_E_RANGE); /* wraps to the end of its page */
    PF_CHECK(send(top, 0xffffffff) == PF_E_RANGE);
    PF_CHECK(send(1ull << 63, 0xffffffff) == PF_E_RANGE);
    PF_CHECK(send(gpa, 0xffffffff) == PF_E_RANGE);
    PF_CHECK(send(gpa, 0x100001) == PF_E_RANGE); /* in bytes 2^32 and a page */
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

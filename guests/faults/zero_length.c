/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends extents of no pages: its own, a hole, beside a good one. Each must be refused, PF_E_RANGE.
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
    uint64_t gpa = page.extents[0].gpa;
    pf_message two = {
        .operation = PF_OP_SEND, .receiver = pf_peer("peer"), .extent_count = 2,
        .extents = { { .gpa = gpa, .pages = 1 }, { .gpa = gpa + PF_PAGE_SIZE, .pages = 0 } },
    };

    PF_CHECK(send(gpa, 0) == PF_E_RANGE);
    PF_CHECK(send(gpa + PF_PAGE_SIZE, 0) == PF_E_RANGE);
    PF_CHECK(send(0, 0) == PF_E_RANGE);
    PF_CHECK(pf_transmit(&two) == PF_E_RANGE);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

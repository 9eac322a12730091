/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends extents whose addresses are not multiples of the page size. Each must be refused, PF_E_ALIGNMENT.
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

    for (uint64_t shift = 1; shift < PF_PAGE_SIZE; shift *= 2)
        PF_CHECK(send(gpa + shift, 1) == PF_E_ALIGNMENT);
    PF_CHECK(send(gpa + PF_PAGE_SIZE - 1, 1) == PF_E_ALIGNMENT);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends messages of which two extents overlap: the same twice, one in the other, their edges, in either order.
 * Each must be refused, PF_E_OVERLAP.
 * Wants three pages from the host, and gives them back when every refusal was as it must be. */
#include "pf.h"

static int send(uint64_t gpa_a, uint32_t pages_a, uint64_t gpa_b, uint32_t pages_b)
{
    pf_message message = {
        .operation = PF_OP_SEND, .receiver = pf_peer("peer"), .extent_count = 2,
        .extents = { { .gpa = gpa_a, .pages = pages_a }, { .gpa = gpa_b, .pages = pages_b } },
    };

    return pf_transmit(&message);
}

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    uint64_t gpa = page.extents[0].gpa;

    PF_CHECK(send(gpa, 1, gpa, 1) == PF_E_OVERLAP);
    PF_CHECK(send(gpa, 3, gpa + PF_PAGE_SIZE, 1) == PF_E_OVERLAP);
    PF_CHECK(send(gpa, 2, gpa + PF_PAGE_SIZE, 2) == PF_E_OVERLAP);
    PF_CHECK(send(gpa + PF_PAGE_SIZE, 2, gpa, 2) == PF_E_OVERLAP);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

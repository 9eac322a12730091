/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends extents that are not in its window: below it, past its end, across its end, in private memory.
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
    uint64_t window = PF->window_gpa, end = window + PF->window_pages * PF_PAGE_SIZE;

    PF_CHECK(send(window - PF_PAGE_SIZE, 1) == PF_E_RANGE);
    PF_CHECK(send(window - PF_PAGE_SIZE, 2) == PF_E_RANGE);
    PF_CHECK(send(end, 1) == PF_E_RANGE);
    PF_CHECK(send(end - PF_PAGE_SIZE, 2) == PF_E_RANGE);
    PF_CHECK(send(window, (uint32_t)PF->window_pages + 1) == PF_E_RANGE);
    PF_CHECK(send(0, 1) == PF_E_RANGE);
    PF_CHECK(send(PF_CONTROL_GPA, 1) == PF_E_RANGE);
    PF_CHECK(send(PF_IMAGE_GPA, 1) == PF_E_RANGE);
    PF_CHECK(send(PF->stack_gpa, 1) == PF_E_RANGE);
    PF_CHECK(send(PF_DOORBELL_GPA, 1) == PF_E_RANGE);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends, and releases, pages that it never had or has sent away before, alone and beside its own.
 * Each must be refused, PF_E_OWNERSHIP. Its peer must get the one page that it had the right to send.
 * Wants three pages from the host, and gives two back when every refusal was as it must be. */
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
    uint64_t gpa = page.extents[0].gpa, end = gpa + 3 * PF_PAGE_SIZE;

    PF_CHECK(send(end, 1) == PF_E_OWNERSHIP);
    PF_CHECK(send(end + (1 << 20), 1) == PF_E_OWNERSHIP);
    PF_CHECK(send(gpa, 4) == PF_E_OWNERSHIP);
    PF_CHECK(pf_release((void *)end, 1) == PF_E_OWNERSHIP);
    PF_CHECK(pf_release((void *)gpa, 4) == PF_E_OWNERSHIP);
    PF_CHECK(send(gpa + 2 * PF_PAGE_SIZE, 1) == PF_OK);
    PF_CHECK(send(gpa + 2 * PF_PAGE_SIZE, 1) == PF_E_OWNERSHIP);
    PF_CHECK(send(gpa + PF_PAGE_SIZE, 2) == PF_E_OWNERSHIP);
    PF_CHECK(pf_release((void *)(gpa + PF_PAGE_SIZE), 2) == PF_E_OWNERSHIP);
    page.extents[0].pages = 2;
    page.length = 2 * PF_PAGE_SIZE;
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

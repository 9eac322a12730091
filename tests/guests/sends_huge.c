/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends 300 KiB to the host in huge pages of their own, and what pf_huge() says of other sizes as the payload. */
#include "pf.h"

#define BYTES (300 * 1024)

int main(void)
{
    static const uint64_t sizes[] = {0, 1, PF_HUGE_PAGES * PF_PAGE_SIZE, PF_HUGE_PAGES * PF_PAGE_SIZE + 1, UINT64_MAX};
    uint64_t pages[sizeof sizes / sizeof *sizes];
    pf_message message = {.operation = PF_OP_SEND, .receiver = PF_PEER_HOST, .extent_count = 1, .length = BYTES};
    void *address;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        pages[i] = pf_huge(sizes[i]);
    PF_CHECK(pf_alloc(pf_huge(BYTES), &address) == PF_OK);
    memset(address, 'x', BYTES);
    message.extents[0].gpa = (uintptr_t)address;
    message.extents[0].pages = (uint32_t)pf_huge(BYTES);
    message.payload_length = sizeof pages;
    memcpy(message.payload, pages, sizeof pages);
    PF_CHECK(pf_transmit(&message) == PF_OK);
    return 0;
}

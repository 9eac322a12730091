/* SPDX-License-Identifier: Apache-2.0
 *
 * The owner lends pages, and takes them back one by one from the end, while the borrower goes on using the first. */
#include "pf.h"

#define PAGES 32
#define VALUE 0x7061676566657272

static int own(uint32_t borrower)
{
    volatile uint64_t *page;

    PF_CHECK(pf_alloc(PAGES, (void **)&page) == PF_OK);
    *page = VALUE;
    PF_CHECK(pf_lend(borrower, (void *)page, PAGES, 0, 0) == PF_OK);
    for (uint64_t i = PAGES - 1; i; i--) {
        for (uint32_t pause = 0; pause < 20000; pause++)
            __asm__ volatile("");
        PF_CHECK(pf_reclaim((char *)page + i * PF_PAGE_SIZE, 1) == PF_OK);
    }
    return 0;
}

static int borrow(uint32_t owner)
{
    pf_message message;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    volatile uint64_t *page = pf_data(&message);

    while (pf_alive(owner)) {
        PF_CHECK(page[0] == VALUE + page[1]);
        page[1] = page[1] + 1;
        page[0] = VALUE + page[1];
    }
    return 0;
}

int main(void)
{
    uint32_t borrower = pf_peer("borrower");

    return borrower == PF_NO_PEER ? borrow(pf_peer("owner")) : own(borrower);
}

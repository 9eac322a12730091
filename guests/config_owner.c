/* SPDX-License-Identifier: Apache-2.0
 *
 * One page of configuration, shared read-only with every machine there is a channel to. It is changed in place: no page
 * moves then, and no reader has a copy that could be out of date. The other side is config_reader.c. */
#include "examples.h"

static uint32_t seen, returned, stopped;

static void take_message(void)
{
    pf_message m;

    PF_CHECK(pf_receive(&m, PF_FOREVER) == PF_OK);
    if (m.operation == PF_OP_SEND && m.tag == CONFIG_SEEN)
        seen++;
    if (m.operation != PF_OP_RETURN)
        pf_drop(&m); /* nobody was asked for pages */
    if (m.operation == PF_OP_RETURN && m.status == PF_OK)
        returned++;
    if (m.operation == PF_OP_RETURN && m.status == PF_E_DEAD)
        stopped++; /* the monitor has returned the page in its name: a loan cannot be lost */
}

int main(void)
{
    struct pf_peer readers[EXAMPLE_PEERS];
    uint32_t count = example_peers(readers);
    struct pf_answer about;
    void *page;

    PF_CHECK(pf_alloc(1, &page) == PF_OK);
    volatile struct config *config = page;
    config->version = 1;
    config->rate = 100;

    /* The same page again and again: as often as there are readers. This machine keeps it, and may go on writing. */
    for (uint32_t i = 0; i < count; i++)
        if (pf_share(readers[i].id, page, 1, CONFIG_SHARED, PF_FLAG_READONLY) != PF_OK)
            stopped++; /* or it has no room: then it is left out */
    while (seen + stopped < count)
        take_message();

    config->rate = 250;
    config->version = 2;
    for (uint32_t i = 0; i < count; i++)
        pf_send_inline(readers[i].id, "", 0, CONFIG_CHANGED); /* one that takes nothing is not told */
    while (returned + stopped < count)
        take_message();

    PF_CHECK(pf_query(page, 1, &about) == PF_OK);
    PF_CHECK(about.hold == PF_HOLD_OWNED && about.borrower_count == 0);
    pf_printf("one page, %u readers: %u returned it, %u stopped; it is mine alone again", count, returned, stopped);
    return 0;
}

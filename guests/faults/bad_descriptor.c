/* SPDX-License-Identifier: Apache-2.0
 *
 * Sets reserved bits, names too many extents, too long a payload, more bytes than its extents have.
 * Each must be refused, PF_E_RESERVED or PF_E_LENGTH.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

/* A send of the page, with one thing changed. */
#define TRY(change) (message = good(&page), message.change, pf_transmit(&message))

static pf_message good(const pf_message *page)
{
    return (pf_message){
        .operation = PF_OP_SEND, .receiver = pf_peer("peer"), .length = PF_PAGE_SIZE, .extent_count = 1,
        .extents = { { .gpa = page->extents[0].gpa, .pages = 1 } },
    };
}

int main(void)
{
    pf_message page, message;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    PF_CHECK(TRY(flags = 1) == PF_E_RESERVED);
    PF_CHECK(TRY(flags = 0x8000) == PF_E_RESERVED);
    PF_CHECK(TRY(reserved0 = 1) == PF_E_RESERVED);
    PF_CHECK(TRY(reserved1[0] = 1) == PF_E_RESERVED);
    PF_CHECK(TRY(reserved1[1] = 1ull << 63) == PF_E_RESERVED);
    PF_CHECK(TRY(extents[0].attributes = 1) == PF_E_RESERVED);
    PF_CHECK(TRY(extent_count = PF_EXTENTS_MAX + 1) == PF_E_LENGTH);
    PF_CHECK(TRY(extent_count = 0xffff) == PF_E_LENGTH);
    PF_CHECK(TRY(payload_length = PF_PAYLOAD_MAX + 1) == PF_E_LENGTH);
    PF_CHECK(TRY(payload_length = 0xffff) == PF_E_LENGTH);
    PF_CHECK(TRY(length = PF_PAGE_SIZE + 1) == PF_E_LENGTH);
    PF_CHECK(TRY(length = ~0ull) == PF_E_LENGTH);
    PF_CHECK(TRY(extent_count = 0) == PF_E_LENGTH); /* its length is still a page */
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Passes a page on to the one machine it may send to, having checked all of it, counted the hop and signed it; who makes
 * the last hop sends it to the host. */
#include "pf.h"

#define WORDS (PF_PAGE_SIZE / sizeof(uint64_t))
#define PRIME 0x100000001b3 /* of FNV-1a */

struct page {
    uint64_t left, hops, digest, seed;
    uint64_t words[WORDS - 4];
};

int main(void)
{
    pf_message message;
    uint32_t next = PF_NO_PEER;

    while (pf_receive(&message, PF_FOREVER) == PF_OK) {
        struct page *page = pf_data(&message);

        for (uint32_t i = 0; next == PF_NO_PEER && i < PF->peer_count; i++)
            if (PF->peers[i].id != PF_PEER_HOST && PF->peers[i].flags & PF_PEER_SEND)
                next = PF->peers[i].id;
        PF_CHECK(message.extent_count == 1 && message.extents[0].pages == 1);
        for (uint32_t i = 0; i < WORDS - 4; i++)
            PF_CHECK(page->words[i] == page->seed + i * page->hops);
        page->hops++;
        for (uint32_t i = 0; i < WORDS - 4; i++)
            page->words[i] += i;
        page->digest = (page->digest ^ PF->self) * PRIME;
        page->left--;
        PF_CHECK(pf_send(page->left ? next : PF_PEER_HOST, page, 1, PF_PAGE_SIZE, 0) == PF_OK);
    }
    return 1;
}

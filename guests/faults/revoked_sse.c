/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends away the middle one of its pages, then adds 16 bytes of it to an SSE register, from offset 0x120 on.
 * Hosts that emulate what they cannot map do not know this instruction.
 * Must stop with an access fault: a read of exactly that guest-physical address.
 * Wants three pages from the host, filled with a, b and c; the ones beside it stay its own. */
#include "pf.h"

__attribute__((target("sse2"))) int main(void)
{
    uint32_t peer = pf_peer("peer");
    pf_message message;

    if (peer == PF_NO_PEER)
        peer = PF->peers[PF->peer_count - 1].id;
    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    volatile unsigned char *pages = pf_data(&message), *sent = pages + PF_PAGE_SIZE;
    PF_CHECK(pf_send(peer, (void *)sent, 1, PF_PAGE_SIZE, 0) == PF_OK);
    PF_CHECK(pages[PF_PAGE_SIZE - 1] == 'a' && sent[PF_PAGE_SIZE] == 'c');
    __asm__ volatile("paddq %0, %%xmm0" : : "m"(*(volatile __int128 *)(sent + 0x120)) : "xmm0"); /* faults here */
    return 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Passes everything on to every peer in turn, in ever changing pieces, until it has heard nothing
 * for a while, or has had as many messages as the tag of each says. */
#include "pf.h"

int main(void)
{
    pf_message m;
    uint32_t turn = 0;
    uint64_t most = 1;

    for (uint64_t i = 0; i < most && pf_receive(&m, 200000) == PF_OK; i++) {
        char *data = pf_data(&m);
        uint32_t pages = m.extents[0].pages, half = pages / 2;
        uint32_t peer = PF->peers[1 + turn++ % (PF->peer_count - 1)].id;

        most = m.tag;
        for (uint32_t page = 0; page < pages; page++)
            PF_CHECK(data[page * 4096] == 'p');
        if (half && pf_send(peer, data, half, half * 4096, most) == PF_OK) {
            data += half * 4096;
            pages -= half;
        }
        peer = PF->peers[1 + turn++ % (PF->peer_count - 1)].id;
        (void)pf_send(peer, data, pages, pages * 4096, most);
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Rings with values that stand for nothing. Each must be answered PF_E_BELL, in bell_status.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    static const uint32_t unknown[] = { 0, PF_BELL_DIRECT + 1, 0x100 + PF_BELL_EXIT, 0x80000000, 0xffffffff };

    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        pf_ring(unknown[i]);
        PF_CHECK(PF->bell_status == PF_E_BELL);
    }
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

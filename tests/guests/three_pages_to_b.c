/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends three pages to b, and expects the first one back, changed. */
#include "pf.h"

int main(void)
{
    pf_message m;
    uint32_t b = pf_peer("b");
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    PF_CHECK(pf_send(b, pf_data(&m), 3, 3 * 4096, 0) == PF_OK);
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    return memcmp(pf_data(&m), "Jello", 5) == 0 ? 0 : 1;
}

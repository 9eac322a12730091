/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills what it gets, and releases half of it. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    memset(pf_data(&m), 0xaa, m.extents[0].pages * 4096);
    PF_CHECK(pf_release(pf_data(&m), 4) == PF_OK); /* half of it; the rest goes with the machine */
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Rings PF_BELL_DIRECT by a doorbell that has no registers to carry an operation. */
#include "pf.h"

int main(void)
{
    pf_ring(PF_BELL_DIRECT);
    return PF->bell_status == PF_E_BELL ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Waits for 50 ms, in vain. */
#include "pf.h"

int main(void)
{
    return pf_wait(50000) == PF_E_TIMEOUT ? 0 : 1;
}

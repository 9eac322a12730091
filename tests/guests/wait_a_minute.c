/* SPDX-License-Identifier: Apache-2.0
 *
 * Waits a minute for what does not come. */
#include "pf.h"

int main(void)
{
    return pf_wait(60000000) == PF_E_TIMEOUT ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Looks for a message without waiting, in vain. */
#include "pf.h"

int main(void)
{
    return pf_wait(0) == PF_E_TIMEOUT ? 0 : 1;
}

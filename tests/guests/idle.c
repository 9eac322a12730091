/* SPDX-License-Identifier: Apache-2.0
 *
 * Waits for one message, for as long as it takes, and exits with its tag. */
#include "pf.h"

int main(void)
{
    pf_message m;

    PF_CHECK(pf_receive(&m, PF_FOREVER) == PF_OK);
    return (int)m.tag;
}

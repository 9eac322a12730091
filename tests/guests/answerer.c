/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies to each message with the number of those that it has taken, until one is tagged 0. */
#include "pf.h"

int main(void)
{
    pf_message m;

    for (uint32_t taken = 1; pf_receive(&m, PF_FOREVER) == PF_OK && m.tag; taken++)
        PF_CHECK(pf_reply(&m, &taken, sizeof taken) == PF_OK);
    return 0;
}

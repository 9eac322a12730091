/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits with the id of whoever sent it a message. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    PF_CHECK(m.receiver == PF->self);
    return (int)m.sender;
}

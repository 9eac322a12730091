/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends to a, or to b if it is a itself; exits with the status, negated. */
#include "pf.h"

int main(void)
{
    uint32_t other = pf_peer(PF->self == 1 ? "b" : "a");
    return -pf_send_inline(other, "x", 1, 0);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends the host one byte. */
#include "pf.h"

int main(void)
{
    return pf_send_inline(PF_PEER_HOST, "x", 1, 0);
}

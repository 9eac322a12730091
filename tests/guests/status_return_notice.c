/* SPDX-License-Identifier: Apache-2.0
 *
 * Expects a status, a returned page and a notice, in this order. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_send_inline(77, "", 0, 0) == PF_E_PEER);            /* a status */
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    PF_CHECK(pf_send(pf_peer("b"), pf_data(&m), 1, 5, 3) == PF_OK);
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    PF_CHECK(m.operation == PF_OP_UNDELIVERED && m.status == PF_E_DEAD && m.tag == 3);
    PF_CHECK(memcmp(pf_data(&m), "hello", 5) == 0);                 /* a returned page */
    while (!(PF->notices & 4))                                      /* a notice */
        PF_CHECK(pf_wait(5000000) == PF_OK);
    return 0;
}

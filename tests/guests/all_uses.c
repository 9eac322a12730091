/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads and writes a page, returns it, sends the next one on, and releases the third. */
#include "pf.h"

int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, 5000000) == PF_OK);
    char *page = pf_data(&m);
    PF_CHECK(memcmp(page, "hello", 5) == 0);                              /* read */
    *page = 'J';                                                          /* write */
    PF_CHECK(pf_send(m.sender, page, 1, 5, 0) == PF_OK);                  /* return */
    PF_CHECK(pf_send(PF_PEER_HOST, page + 4096, 1, 4096, 9) == PF_OK);    /* send on */
    PF_CHECK(pf_release(page + 8192, 1) == PF_OK);                        /* release */
    return 0;
}

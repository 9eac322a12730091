/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends two bytes to the machine called "third". */
#include "pf.h"

int main(void)
{
    return pf_send_inline(pf_peer("third"), "hi", 2, 0) == PF_OK ? 0 : 9;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits with the code that the host sends it, 4 bytes of payload. Must be seen as it is, whatever it is. */
#include "pf.h"

int main(void)
{
    pf_message message;
    int32_t code;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    memcpy(&code, message.payload, sizeof code);
    return code;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends every message back to its sender, pages and payload and tag; exits when it has heard nothing for a
 * second, or on an empty message. */
#include "pf.h"

int main(void)
{
    pf_message message;

    while (pf_receive(&message, 1000000) == PF_OK) {
        if (!message.extent_count && !message.payload_length)
            return 0;
        if (pf_reply(&message, message.payload, message.payload_length) != PF_OK)
            pf_drop(&message); /* no channel leads back, or its sender does not take what it gets */
    }
    return 0;
}

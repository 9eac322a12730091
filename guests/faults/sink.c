/* SPDX-License-Identifier: Apache-2.0
 *
 * No fault of its own, but somebody for the others to send to: takes every message and keeps its pages, and
 * logs who sent it, how many pages came, the tag and the payload. */
#include "pf.h"

int main(void)
{
    pf_message message;

    while (pf_receive(&message, PF_FOREVER) == PF_OK) {
        uint32_t pages = 0;

        for (int i = 0; i < message.extent_count; i++)
            pages += message.extents[i].pages;
        message.payload[PF_PAYLOAD_MAX - 1] = 0;
        pf_printf("from %u, operation %u, tag %lu, %u pages: %s", message.sender, message.operation, message.tag,
                  pages, (const char *)message.payload);
    }
    return 1;
}

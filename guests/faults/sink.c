/* SPDX-License-Identifier: Apache-2.0
 *
 * No fault of its own, but somebody for the others to send to: takes every message and keeps its pages, and
 * logs who sent it, its tag, how many pages came, the letter they are full of, and the payload. */
#include "pf.h"

/* The byte that all of the pages consist of; '-' without pages, '?' if they are a mixture. */
static char letter(const pf_message *message, uint32_t *pages)
{
    char found = '-';

    for (int i = 0; i < message->extent_count; i++) {
        const char *data = (const char *)message->extents[i].gpa;

        *pages += message->extents[i].pages;
        found = i ? found : data[0];
        for (size_t n = 0; n < message->extents[i].pages * (size_t)PF_PAGE_SIZE; n++)
            found = data[n] == found ? found : '?';
    }
    return found;
}

int main(void)
{
    pf_message message;

    while (pf_receive(&message, PF_FOREVER) == PF_OK) {
        uint32_t pages = 0;
        char of = letter(&message, &pages);

        message.payload[PF_PAYLOAD_MAX - 1] = 0;
        pf_printf("from %u, tag %lu, %u pages of %c: %s", message.sender, message.tag, pages, of,
                  (const char *)message.payload);
    }
    return 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads or writes an address that the host names in a message: 8 bytes of address, then the width (1, 4 or 8),
 * then 'r' or 'w'. Where no memory is behind it, it must stop with an access fault that names it. */
#include "pf.h"

int main(void)
{
    pf_message message;
    uint64_t address;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    memcpy(&address, message.payload, sizeof address);
    bool write = message.payload[9] == 'w';
    switch (message.payload[8]) {
    case 1: {
        volatile uint8_t *byte = (volatile uint8_t *)address;
        return write ? (int)(*byte = PF_BELL_EXIT) : *byte;
    }
    case 4: {
        volatile uint32_t *word = (volatile uint32_t *)address;
        return write ? (int)(*word = PF_BELL_EXIT) : (int)*word;
    }
    default: {
        volatile uint64_t *words = (volatile uint64_t *)address;
        return write ? (int)(*words = PF_BELL_EXIT) : (int)*words;
    }
    }
}

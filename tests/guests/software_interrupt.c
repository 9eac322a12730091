/* SPDX-License-Identifier: Apache-2.0
 *
 * Executes the instruction that the host names by a byte of payload: INT with that number, INT3 for 'b', #UD for 'u',
 * and for 's' a jump to the trap stub of #GP with the stack pointer that follows, 8 bytes. */
#include "pf.h"

#define INT(n) \
    case n: \
        __asm__ volatile("int $" #n); \
        break;

int main(void)
{
    pf_message message;
    uint64_t stack;

    PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    memcpy(&stack, message.payload + 1, sizeof stack);
    switch (message.payload[0]) {
        INT(0) INT(2) INT(3) INT(6) INT(8) INT(13) INT(14) INT(18) INT(31) INT(32) INT(128)
    case 'b':
        __asm__ volatile("int3");
        break;
    case 'u':
        __asm__ volatile("ud2");
        break;
    case 's':
        __asm__ volatile("mov %0, %%rsp\n\tjmp *%1" ::"r"(stack), "r"(0x3000L + 13 * 4));
        break;
    }
    return 1;
}

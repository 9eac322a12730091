/* SPDX-License-Identifier: Apache-2.0
 * Start-up: the note that carries the ABI version, and the first instruction. */
#include "pf.h"

struct pf_abi_note {
    uint32_t name_bytes, descriptor_bytes, type;
    char name[12]; /* PF_NOTE_NAME with its zero, padded to four bytes */
    uint32_t major, minor;
};

__attribute__((section(".note.pageferry"), used, aligned(4))) static const struct pf_abi_note abi_note = {
    .name_bytes = sizeof PF_NOTE_NAME,
    .descriptor_bytes = 8,
    .type = PF_NOTE_ABI,
    .name = PF_NOTE_NAME,
    .major = PF_ABI_MAJOR,
    .minor = PF_ABI_MINOR,
};

int main(void);

/* The monitor enters here in long mode, interrupts off, with the stack pointer as after a call
 * (8 below a multiple of 16) and nothing below it in use; .bss is zero because fresh memory is. */
__attribute__((section(".text.start"), noreturn, used)) void _start(void)
{
    pf_exit(main());
}

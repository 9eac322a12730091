/* SPDX-License-Identifier: Apache-2.0
 * Start-up and end: the note that carries the ABI version, the first instruction, constructors and destructors, and
 * what thread-local variables and the stack protector find at the FS base. */
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

/* ---- The thread: there is one, and guest.ld lays its variables out where they stay ---- */

/* At the FS base, right after the thread-local variables (System V ABI, ELF Handling For Thread-Local Storage,
 * variant II). The monitor takes the address from PT_TLS, and checks that the first word is it. */
struct thread_control {
    const void *self;
    uintptr_t unused[4];
    uintptr_t canary; /* compilers read it at %fs:0x28 */
    uintptr_t unused1[2];
};

__attribute__((section(".pf_thread"), aligned(64))) static struct thread_control thread = { .self = &thread };

/* There is always one thread-local variable, so that there is always a PT_TLS. */
__attribute__((used)) static _Thread_local uintptr_t anchor[8] __attribute__((aligned(64))) = { 1 };

__attribute__((noreturn)) void __stack_chk_fail(void);
void __stack_chk_fail(void)
{
    pf_panic("stack smashing detected");
}

/* Not the same in two runs, and with a zero byte that no string carries along. */
static uintptr_t new_canary(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    uint64_t x = ((uint64_t)high << 32 | low) + PF->self;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9;
    return (x ^ x >> 32) & ~(uintptr_t)0xff;
}

/* ---- Constructors and destructors: arrays that guest.ld collects, in the order of their priorities ---- */

typedef void constructor(int, char **, char **);
typedef void destructor(void);

/* Compared by order: compilers take it that no two arrays begin at the same address, and these may be empty. */
extern constructor *const pf_constructors[], *const pf_constructors_end[];
extern destructor *const pf_destructors[], *const pf_destructors_end[];

static destructor *const *next_destructor = pf_destructors_end;

void pf_exit(int code)
{
    while (next_destructor > pf_destructors) /* one that exits itself is not called again */
        (*--next_destructor)();
    PF->exit_code = code;
    for (;;)
        pf_ring(PF_BELL_EXIT);
}

/* A main() without parameters is called as well by this. */
int main(int argc, char **argv, char **environment);

/* The monitor enters here in long mode, interrupts off, with the stack pointer as after a call
 * (8 below a multiple of 16) and nothing below it in use; .bss is zero because fresh memory is. */
__attribute__((section(".text.start"), noreturn, used)) void _start(void)
{
    static char *argv[] = { (char *)PF_CONTROL_GPA + offsetof(struct pf_control, name), NULL };
    char **environment = argv + 1;

    thread.canary = new_canary();
    for (constructor *const *next = pf_constructors; next < pf_constructors_end; next++)
        (*next)(1, argv, environment);
    pf_exit(main(1, argv, environment));
}

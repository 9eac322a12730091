/* SPDX-License-Identifier: Apache-2.0
 *
 * Uses more stack than there is, as its name says: by one frame of so many kilobytes ("frame-400"), or by recursion of
 * such frames ("deep-4"); "unprobed-400" touches only the far end. Fills .bss up to where a small guard area would end. */
#include "pf.h"

/* Up to the stack of a machine of 16 MiB, but for the image and its rounding up. */
static volatile char fill[(16 << 20) - (256 << 10) - (2 << 20) - (64 << 10)];

static unsigned number(const char *text)
{
    unsigned n = 0;

    for (; *text; text++)
        n = *text >= '0' && *text <= '9' ? n * 10 + (unsigned)(*text - '0') : 0;
    return n;
}

/* What a function does that does not probe its frame. */
__attribute__((noinline)) static int unprobed(uintptr_t bytes)
{
    __asm__ volatile("sub %0, %%rsp\n\tmovb $'X', (%%rsp)\n\tadd %0, %%rsp" : : "r"(bytes) : "memory");
    return 'X';
}

/* The end of the frame that is used first is the far one. */
__attribute__((noinline)) static int frame(unsigned bytes)
{
    volatile char large[bytes];

    large[0] = 'X';
    return large[0];
}

__attribute__((noinline)) static int fixed(void)
{
    volatile char large[(1 << 20) + 4096];

    for (int i = 0; i < 4096; i++)
        large[i] = 'X';
    return large[1];
}

__attribute__((noinline)) static int descend(unsigned bytes, unsigned depth)
{
    volatile char large[bytes];

    large[0] = (char)depth;
    return depth == 1000000 ? 0 : descend(bytes, depth + 1) + large[0];
}

int main(int argc, char **argv)
{
    const char *name = argv[argc - 1];
    int done = 0;

    switch (name[0]) {
    case 'd': done = descend(number(name) << 10, 0); break;
    case 'u': done = unprobed(number(name) << 10); break;
    case 'm': done = fixed(); break;
    default: done = frame(number(name) << 10); break;
    }
    for (size_t i = 0; i < sizeof fill; i += 4096)
        PF_CHECK(fill[i] == 0);
    pf_printf("%s was no more than the stack", name);
    return done != 'X';
}

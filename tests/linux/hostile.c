/* SPDX-License-Identifier: Apache-2.0
 *
 * hostile SEED COUNT: makes system calls of any number with arguments that are at the edges of something, and at random.
 * Whatever becomes of it, it must be its own affair. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t state;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static char area[16384];
static char *edge; /* the end of a page, after which there is nothing */

static const char *const paths[] = {
    "..", ".", "/", "", "/proc/self/exe", "/proc/self/fd/0", "/proc/self/mem", "/proc/self/maps", "/../../../etc/passwd",
    "/in/offered", "/in/../..", "link", "/out/link/x", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/kvm", "/dev/mem",
    "/out/a", "/out/b", "/out/a/b", "/tmp", "/root", "/etc/passwd", "/sys/kernel", "/proc/1/root", "a\n\033[31m", "/out/../in",
};

static uint64_t pointer(void)
{
    switch (draw() % 16) {
    case 0: return 0;
    case 1: return (uint64_t)(area + draw() % sizeof(area));
    case 2: return (uint64_t)(edge - draw() % 64);
    case 3: return (uint64_t)edge;
    case 4: return 0x1000 * (draw() % 0x400);      /* the system area, and what follows */
    case 5: return 0x3FFFF000 + draw() % 4096;     /* the doorbell */
    case 6: return 0x100000000 + draw() % (4 << 20); /* the window */
    case 7: return 0x140000000 + draw() % (1 << 30); /* the arena, and what is behind it */
    case 8: return ~draw() % 4096;
    case 9: return 0xFFFFFFFFFFFFF000 + draw() % 4096;
    case 10: return 1ULL << (draw() % 64);
    case 11: return draw();
    default: return (uint64_t)paths[draw() % (sizeof(paths) / sizeof(paths[0]))];
    }
}

static uint64_t number(void)
{
    static const uint64_t edges[] = {
        0, 1, 2, 3, 4, 7, 8, 64, 100, 255, 256, 511, 512, 1023, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 0x7FFFFFFF,
        0x80000000, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFF000, 0xFFFFFFFFFFFFFFFF,
        (uint64_t)-100, 0x200000, 0x400000, 0x40000000,
    };
    switch (draw() % 4) {
    case 0: return draw();
    case 1: return draw() % 16;
    default: return edges[draw() % (sizeof(edges) / sizeof(edges[0]))];
    }
}

static int ends_it(long call)
{
    return call == SYS_exit || call == SYS_exit_group || call == SYS_pause || call == SYS_rt_sigsuspend ||
           call == SYS_kill || call == SYS_tkill || call == SYS_tgkill;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 0) * 0x9E3779B97F4A7C15 + 1;
    long count = strtol(argv[2], NULL, 0);
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + 4096, 4096);
    edge = pages + 4096;
    symlink("/../../..", "/out/link");
    for (long i = 0; i < count; i++) {
        long call = draw() % 8 ? draw() % 335 : draw() % 1001;
        if (ends_it(call) && draw() % 64)
            continue;
        uint64_t a[6];
        for (int k = 0; k < 6; k++)
            a[k] = draw() % 2 ? pointer() : number();
        /* So that it lives on for a while: what it is made of stays, mostly. */
        if ((call == SYS_munmap || call == SYS_mprotect || call == SYS_mremap || call == SYS_mmap || call == SYS_brk) &&
            a[0] < 0x1000000 && draw() % 32)
            a[0] = 0;
        register long r10 __asm__("r10") = a[3];
        register long r8 __asm__("r8") = a[4];
        register long r9 __asm__("r9") = a[5];
        long result;
        __asm__ volatile("syscall" : "=a"(result) : "a"(call), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
    }
    return 0;
}

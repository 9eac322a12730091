/* SPDX-License-Identifier: Apache-2.0
 *
 * hostile SEED CALLS [PATH...]: makes system calls of every number with arguments that are at the edges of something, and
 * at random. Whatever becomes of it, it must be its own affair. The paths are tried besides its own; a peer "other", if
 * there is one, is sent and lent what is pointed to afterwards. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pf.h"

#define PAGES 8
#define SWEPT 1001 /* each number below it comes once, before any comes at random */
#define SERVED 335 /* all but the newest are below it */
#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t state;

static uint64_t draw(void)
{
    state += !state; /* it may have overwritten it */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 8;
}

static uint64_t draw_word(void)
{
    return draw() << 32 ^ draw();
}

static char *mapped;   /* pages that can be written, read, neither, ... */
static char *edge;     /* the end of those that can be written, after which there is nothing */
static uint64_t *area; /* the first of them: structures of pointers and numbers, at random */
static char *window;   /* pages of which some are its own, some lent, some gone */

#define WORDS (2 * PF_PAGE_SIZE / sizeof *area)

static const char deep[] = "../../../../../../../../../../../../../../../../../../../..";
static char long_name[NAME_MAX + 2], long_path[PATH_MAX + 1], up[64][sizeof deep + 64];
static const char *paths[256];
static unsigned path_count;

static const char *const places[] = {
    "..", ".", "/", "", "//", "a\n\033[31m", "\xff\xfe", "link", "/out", "/out/a", "/out/b", "/out/a/b", "/out/../in", "/tmp",
    "/in/offered", "/in/host", "/in/../..", "/proc", "/proc/self", "/proc/self/exe", "/proc/self/exe/..", "/proc/self/fd",
    "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/3", "/proc/self/fd/4/..", "/proc/self/fd/5/../..", "/proc/self/root",
    "/proc/self/cwd", "/proc/self/mem", "/proc/self/maps", "/proc/self/environ", "/proc/self/task", "/proc/1/root",
    "/proc/1/root/etc/passwd", "/proc/thread-self/root", "/proc/version", "/proc/kcore", "/proc/sysrq-trigger", "/sys/kernel",
    "/dev", "/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/kvm", "/dev/mem", "/dev/sda", "/dev/tty", "/dev/stdin",
    "/dev/fd/1", "/dev/shm/x", "/etc/passwd", "/root", "/out/up", "/out/up/etc/passwd", "/out/round", "/out/mem", "/out/root",
    "/out/far", "/file", "/sub", "/sub/file", "/sub/..", "/sub/../../secret", "/outside", "/outside/", "/outside/secret",
    "/absolute", "/parent", "/parent/secret", "/parent/parent", "/chain", "/chain/secret", "/loop", "/moving/file", "/moving/folder/secret",
    "/moving/folder/../secret", "/environment", "/memory", "/system",
    "/system/self/mem", "/system/self/environ", "/system/1/root", "/devices/null", "/pipe", "/socket", "/closed", "/closed/in",
};

static void add(const char *path)
{
    if (path_count < COUNT(paths))
        paths[path_count++] = path;
}

static void prepare(int argc, char **argv)
{
    for (unsigned i = 0; i < COUNT(places); i++)
        add(places[i]);
    for (int i = 3; i < argc; i++) {
        add(argv[i]);
        for (unsigned k = 0; k < 2 && i < 16; k++) {
            snprintf(up[2 * i + k], sizeof *up, "%s%.80s", deep + 3 * (draw() % 19), argv[i]);
            add(up[2 * i + k]);
        }
    }
    memset(long_name, 'n', sizeof long_name - 1);
    memset(long_path, '/', sizeof long_path - 1);
    add(long_name), add(long_name + 1);
    add(long_path), add(long_path + 1), add(long_path + 2);

    mapped = mmap(NULL, PAGES * PF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(mapped, '.', PAGES * PF_PAGE_SIZE); /* a path that does not end before the edge */
    mprotect(mapped + 5 * PF_PAGE_SIZE, PF_PAGE_SIZE, PROT_READ);
    mprotect(mapped + 6 * PF_PAGE_SIZE, PF_PAGE_SIZE, PROT_NONE);
    munmap(mapped + 3 * PF_PAGE_SIZE, PF_PAGE_SIZE);
    edge = mapped + 3 * PF_PAGE_SIZE;
    area = (uint64_t *)mapped;

    void *pages;
    if (pf_alloc(PAGES, &pages) == PF_OK) {
        uint32_t other = pf_peer("other");

        window = pages;
        memset(window, '/', PAGES * PF_PAGE_SIZE);
        pf_send(other, window + PF_PAGE_SIZE, 1, PF_PAGE_SIZE, 1);
        pf_lend(other, window + 3 * PF_PAGE_SIZE, 1, 2, 0);
        pf_share(other, window + 5 * PF_PAGE_SIZE, 1, 3, PF_FLAG_READONLY);
    }
    const char *links[] = { "/../../..", "up", "/proc/self/mem", "/proc/1/root", deep };
    const char *names[] = { "/out/up", "/out/round", "/out/mem", "/out/root", "/out/far" };
    for (unsigned i = 0; i < COUNT(links); i++)
        syscall(SYS_symlink, links[i], names[i]);
}

static uint64_t near(const void *place)
{
    return (uintptr_t)place + draw() % 17 - 8;
}

static uint64_t pointer(void)
{
    switch (draw() % 24) {
    case 0: return draw() % 2 ? 0 : draw() % 4096;
    case 1: return near(edge);
    case 2: return (uintptr_t)edge - draw() % 64 * (draw() % 128);
    case 3: return near(mapped + draw() % (PAGES + 1) * PF_PAGE_SIZE);
    case 4: return near(window + draw() % (PAGES + 1) * PF_PAGE_SIZE);
    case 5: return (uintptr_t)window + draw() % (PAGES * PF_PAGE_SIZE);
    case 6: return PF_WINDOW_GPA + draw() % (4 << 20) - 4096; /* all of the window, and what is about it */
    case 7: return PF_CONTROL_GPA + draw() % sizeof(struct pf_control);
    case 8: return near((void *)(PF_CONTROL_GPA + (draw() % 2) * ((sizeof(struct pf_control) + 4095) & -4096ul)));
    case 9: return 0x1000 * (draw() % 0x400);                 /* the system area, and what follows */
    case 10: return near((void *)(PF_DOORBELL_GPA + draw() % 3 * 2048));
    case 11: return 0x140000000 + draw() % (1 << 30);         /* the arena, and what is behind it */
    case 12: return draw() % 16 ? (uintptr_t)&prepare : (uintptr_t)__builtin_frame_address(0) - 4096 - draw() % (16 << 20);
    case 13: return -1 - draw() % 8192;
    case 14: return (1ul << 47) - 4096 + draw() % 8192;       /* where what is canonical ends */
    case 15: return (1ul << draw() % 64) + draw() % 3 - 1;
    case 16: return draw_word();
    case 17:
    case 18: return (uintptr_t)paths[draw() % path_count];
    case 19: return near(area + draw() % WORDS);
    default: return (uintptr_t)(area + draw() % WORDS);
    }
}

static uint64_t number(void)
{
    static const uint64_t edges[] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 100, 255, 256, 511, 512, 1023, 1024, 1025, 4095, 4096, 4097, 65535, 65536, 0x100000,
        0x7fffffff, 0x80000000, 0x80000001, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
        0x8000000000000001, -4096ul, -4095ul, -1ul, -2ul, -100ul, 0x200000, 0x400000, 0x40000000, 0x410000, 0x90800,
        0170000, 0x3f, 01000, 02, 0102, 03102, 040, 0700,
    };
    switch (draw() % 5) {
    case 0: return draw_word();
    case 1: return 1ul << draw() % 64 | 1ul << draw() % 64; /* flags */
    case 2: return draw() % 20;
    default: return edges[draw() % COUNT(edges)];
    }
}

static uint64_t argument(void)
{
    return draw() % 2 ? pointer() : number();
}

/* These end it, or let it wait for ever: it may, but not each time. */
static int ends_it(uint64_t call)
{
    switch (call) {
    case SYS_exit:
    case SYS_exit_group:
    case SYS_pause:
    case SYS_rt_sigsuspend:
    case SYS_kill:
    case SYS_tkill:
    case SYS_tgkill:
        return 1;
    default:
        return 0;
    }
}

/* And with these it takes its own ground away, if it happens to be hit. */
static int moves_ground(uint64_t call)
{
    return call == SYS_munmap || call == SYS_mprotect || call == SYS_mremap || call == SYS_mmap || call == SYS_brk ||
           call == SYS_madvise;
}

static uint64_t call_number(uint64_t made)
{
    static const uint64_t odd[] = { -1ul, -2ul, 1ul << 31, 1ul << 32, 1ul << 63, 1ul << 30, 0x40000000 + 520, 0xffffffff };

    if (made < SWEPT)
        return made;
    switch (draw() % 16) {
    case 0: return draw() % SWEPT;
    case 1: return draw() % 8 ? SERVED + draw() % 140 : odd[draw() % COUNT(odd)] + draw() % 400;
    default: return draw() % SERVED;
    }
}

static void make(uint64_t call)
{
    uint64_t a[6];

    for (int k = 0; k < 6; k++)
        a[k] = argument();
    if (moves_ground((uint32_t)call) && draw() % 128) {
        a[0] = draw() % 4 ? (uintptr_t)mapped + (4 + draw() % 4) * PF_PAGE_SIZE : 0x180000000 + draw() % (1 << 28);
        if (draw() % 128)
            a[1] = draw() % (4 * PF_PAGE_SIZE);
    }
    register uint64_t r10 __asm__("r10") = a[3];
    register uint64_t r8 __asm__("r8") = a[4];
    register uint64_t r9 __asm__("r9") = a[5];
    uint64_t result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(call), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
}

/* Asks sensibly, for once: if anything leads to what is nobody's business, this shows it. Returns how many calls it took. */
static uint64_t peruse(void)
{
    static const int ways[] = { O_RDONLY, O_RDONLY | O_NOFOLLOW, O_DIRECTORY, O_PATH, O_RDWR, O_RDWR | O_CREAT,
                                O_WRONLY | O_TRUNC | O_CREAT, O_WRONLY | O_APPEND };
    const char *path = paths[draw() % path_count];
    long at = draw() % 4 ? AT_FDCWD : (long)(draw() % 12), fd = syscall(SYS_openat, at, path, ways[draw() % COUNT(ways)], 0600);

    syscall(SYS_readlinkat, at, path, area, PF_PAGE_SIZE);
    syscall(SYS_newfstatat, at, path, area, draw() % 2 * AT_SYMLINK_NOFOLLOW);
    syscall(SYS_read, fd, area, PF_PAGE_SIZE);
    syscall(SYS_pread64, fd, window, PF_PAGE_SIZE, draw() % 2 * (uintptr_t)area);
    syscall(SYS_getdents64, fd, area, PF_PAGE_SIZE);
    syscall(SYS_write, fd, area, draw() % 100);
    syscall(SYS_fchmod, fd, draw() % 01000);
    syscall(SYS_mmap, NULL, PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
    if (draw() % 8)
        syscall(SYS_close, fd);
    return 10;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15 + 1;
    uint64_t calls = strtoull(argv[2], NULL, 0);

    prepare(argc, argv);
    for (uint64_t made = 0; made < calls; made++) {
        uint64_t call = call_number(made);

        for (int i = 0; i < 8; i++)
            area[draw() % WORDS] = argument();
        if (ends_it((uint32_t)call) && draw() % 256)
            continue;
        if (!(draw() % 4096)) {
            PF->wait_timeout_us = draw() % 1000;
            pf_ring(draw() % 2 ? PF_BELL_TRANSMIT : PF_BELL_WAIT);
        }
        make(call);
        if (made >= SWEPT && !(draw() % 64))
            made += peruse();
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that keeps nothing for itself: asked to, it leaves what it is given wherever a program can leave anything,
 * and tells what it finds there. Each message is a struct order, and is answered. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pf.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOTHING, DIRTY, LEAVE, LOOK, SCATTER, PRINT, PAUSE, MAP, RIGHTS, DISCARD };
#define SECRET 16
#define PAGE 4096
#define PAGES 4096
#define HEAP (1 << 20)
#define DEEP (32 << 10)
#define LARGE (4 << 20)

struct order {
    uint32_t what;
    uint32_t count;
    unsigned char secret[SECRET];
};

static const char constant[3 * PAGE] __attribute__((aligned(PAGE))) = "what is there";
static char initialized[3 * PAGE] = "what was there";
static char cleared[3 * PAGE];
static char pages[PAGES][PAGE] __attribute__((aligned(PAGE)));
static __thread char of_the_thread[64] = "the thread's";
static char *heap, *mapped, *touched, *also, *untouched;
static int kept; /* a file that is open from the beginning */

__attribute__((noinline, aligned(PAGE))) static int code(void)
{
    __asm__ volatile(".skip 64, 0x90"); /* room for a secret */
    return 7;
}

__attribute__((noinline)) static void on_the_stack(const unsigned char *secret)
{
    volatile char deep[DEEP];

    for (size_t at = 0; at < sizeof deep; at++)
        deep[at] = (char)secret[at % SECRET];
}

static void over(char *there, size_t size, const unsigned char *secret)
{
    for (size_t at = 0; at + SECRET <= size; at += SECRET)
        memcpy(there + at, secret, SECRET);
}

static void in_files(const unsigned char *secret)
{
    FILE *made = fopen("/tmp/left", "w");

    fwrite(secret, 1, SECRET, made);
    fclose(made);
    for (int i = 0; i < 40; i++)
        write(kept, secret, SECRET);
    mkdir("/tmp/there", 0700);
    chdir("/tmp/there");
    rename("/out/named", "/out/renamed");
    symlink("/tmp/left", "/tmp/link");
    umask(077);
    dup2(kept, 77);
    int shared = open("/out/shared", O_RDWR);
    char *live = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    memcpy(live, secret, SECRET);
    munmap(live, PAGE);
    int ends[2];
    pipe(ends);
    write(ends[1], secret, SECRET);
}

static void *heap_of_pages(const unsigned char *secret)
{
    char *made = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    over(made, LARGE, secret);
    return made;
}

static void in_memory(const unsigned char *secret)
{
    over(initialized, sizeof initialized, secret);
    over(cleared, sizeof cleared, secret);
    over(pages[0], 16 * PAGE, secret);
    over(heap, HEAP, secret);
    over(mapped, 4 * PAGE, secret);
    memcpy(of_the_thread, secret, SECRET);
    over(malloc(HEAP / 2), HEAP / 2, secret); /* lost */
    over(malloc(4 * HEAP), 4 * HEAP, secret);
    over(sbrk(64 * PAGE), 64 * PAGE, secret);
    char *more = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    over(more, 8 * PAGE, secret);
    mprotect(more, 2 * PAGE, PROT_NONE); /* hidden */
    munmap(mapped + PAGE, PAGE);
    for (int i = 0; i < 12; i++) /* more than the monitor maps anew */
        munmap(touched + i * LARGE / 64, LARGE / 64);
    char *again = mmap(touched, LARGE / 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    over(again, LARGE / 32, secret);
    over(untouched, LARGE / 2, secret);
    mremap(untouched, LARGE, LARGE, MREMAP_MAYMOVE | MREMAP_FIXED, also);
    char *moved = mremap(heap_of_pages(secret), LARGE, 2 * LARGE, MREMAP_MAYMOVE);
    over(moved + LARGE, PAGE, secret);
    mprotect(mapped + 2 * PAGE, PAGE, PROT_READ);
    madvise(mapped + 3 * PAGE, PAGE, MADV_DONTNEED);
    uintptr_t place = (uintptr_t)code / PAGE * PAGE;
    mprotect((void *)place, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (unsigned char *at = (unsigned char *)code;; at++)
        if (at[0] == 0x90 && at[1] == 0x90 && at[2] == 0x90) {
            memcpy(at, secret, SECRET);
            break;
        }
    setenv("HOME", (const char *)secret, 1);
    memcpy(getenv("PATH"), secret, SECRET);
    on_the_stack(secret);
}

static void in_the_process(const unsigned char *secret)
{
    sigset_t some;
    struct rlimit limit = {100, 200};

    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigprocmask(SIG_BLOCK, &some, NULL);
    raise(SIGUSR1);
    signal(SIGTERM, SIG_IGN);
    setrlimit(RLIMIT_NOFILE, &limit);
    fwrite(secret, 1, SECRET, stdout);
    fflush(stdout);
}

static void in_the_control_structure(const unsigned char *secret)
{
    memcpy((void *)PF->reserved0, secret, SECRET);
    memcpy((void *)PF->reserved2, secret, SECRET);
    memcpy((void *)PF->peers[PF_PEERS_MAX - 1].name, secret, SECRET);
    memcpy((void *)PF->peers[0].name, secret, SECRET);
    memcpy((void *)PF->name, secret, SECRET);
    memcpy((void *)PF->tx[PF_TX_ENTRIES - 1].payload, secret, SECRET);
    memcpy((void *)PF->rx[PF_RX_ENTRIES - 1].payload, secret, SECRET);
    PF->peer_count = 0;
    PF->notices = PF->notice_count = 99;
    PF->progress_done = 5;
}

static void in_registers(const unsigned char *secret)
{
    unsigned int mxcsr = 0x1f80 | 0x6000; /* rounds towards zero */
    unsigned short x87 = 0x0c7f;

    __asm__ volatile("movdqu (%0), %%xmm0; movdqu (%0), %%xmm7; movdqu (%0), %%xmm15; ldmxcsr %1; fldcw %2; fldpi"
                     : : "r"(secret), "m"(mxcsr), "m"(x87) : "xmm0", "xmm7", "xmm15");
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vbroadcastf128 (%0), %%ymm9" : : "r"(secret) : "xmm9");
}

/* What there is to be found, in a few bytes. */
static uint64_t sum;

static void add(const void *data, size_t size)
{
    for (size_t at = 0; at < size; at++)
        sum = (sum ^ ((const unsigned char *)data)[at]) * 0x100000001b3;
}

static void add_number(long number)
{
    add(&number, sizeof number);
}

static uint64_t look(void)
{
    char text[256] __attribute__((aligned(32))) = "", wide[32];
    unsigned int mxcsr;
    unsigned short x87, status;
    sigset_t some;
    struct rlimit limit;
    struct stat about;
    struct sigaction action;

    __asm__ volatile("stmxcsr %0; fnstcw %1; fnstsw %2" : "=m"(mxcsr), "=m"(x87), "=m"(status));
    memset(wide, 0, sizeof wide);
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vmovdqu %%ymm9, %0" : "=m"(wide));
    sum = 0xcbf29ce484222325;
    add(wide, sizeof wide);
    add_number(mxcsr), add_number(x87), add_number(status & 0x3800);
    add(constant, sizeof constant), add(initialized, sizeof initialized), add(cleared, sizeof cleared);
    add(pages, 32 * PAGE), add(heap, HEAP), add(mapped, 4 * PAGE);
    add(touched, LARGE), add(also, LARGE), add(untouched, LARGE);
    add(of_the_thread, sizeof of_the_thread);
    add(getenv("HOME"), strlen(getenv("HOME"))), add(getenv("PATH"), strlen(getenv("PATH")));
    add_number(code());
    add_number((long)sbrk(0));
    add_number((long)mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    add_number(lseek(kept, 0, SEEK_CUR)), add_number(lseek(kept, 0, SEEK_END));
    add(text, (size_t)pread(kept, text, sizeof text, 0));
    add(text, strlen(getcwd(text, sizeof text)));
    add_number(access("/tmp/left", F_OK)), add_number(access("/tmp/there", F_OK));
    add_number(access("/out/named", F_OK)), add_number(access("/out/renamed", F_OK));
    add_number(lstat("/tmp/link", &about)), add_number(fcntl(77, F_GETFD));
    add_number(stat("/out/shared", &about)), add_number((long)about.st_ino), add_number(about.st_size);
    int shared = open("/out/shared", O_RDWR);
    add_number(shared);
    add(text, (size_t)read(shared, text, sizeof text));
    sigprocmask(SIG_BLOCK, NULL, &some);
    add(&some, 8);
    sigpending(&some);
    add(&some, 8);
    sigaction(SIGTERM, NULL, &action);
    add_number((long)action.sa_handler);
    getrlimit(RLIMIT_NOFILE, &limit);
    add_number((long)limit.rlim_cur);
    mode_t mask = umask(022);
    add_number(mask);
    umask(mask);
    int made = open("/tmp/made", O_CREAT | O_RDWR, 0644);
    fstat(made, &about);
    add_number(made), add_number((long)about.st_ino);
    add((const void *)PF->reserved0, sizeof PF->reserved0), add((const void *)PF->reserved2, sizeof PF->reserved2);
    add((const void *)PF->peers, sizeof PF->peers), add((const void *)PF->tx, sizeof PF->tx);
    for (uint32_t i = 0; i < PF_RX_ENTRIES; i++)
        if (i != (PF->rx_tail - 1) % PF_RX_ENTRIES) /* the order itself: no message has the same number */
            add((const void *)&PF->rx[i], sizeof PF->rx[i]);
    add((const void *)PF->name, sizeof PF->name);
    add_number(PF->peer_count), add_number(PF->notices), add_number(PF->notice_count);
    add_number((long)PF->progress_done);
    return sum;
}

static uint64_t serve(const struct order *order)
{
    switch (order->what) {
    case DIRTY:
        for (uint32_t i = 0; i < order->count; i++)
            pages[i][i % PAGE]++;
        break;
    case SCATTER: /* a page of two */
        for (uint32_t i = 0; i < order->count; i++)
            pages[2 * i][i % PAGE]++;
        break;
    case PRINT:
        printf("%u\n", order->count);
        fflush(stdout);
        break;
    case LEAVE:
        in_files(order->secret);
        in_the_process(order->secret);
        in_memory(order->secret);
        in_the_control_structure(order->secret);
        in_registers(order->secret);
        break;
    case PAUSE:
        over(pages[0], PAGE, order->secret);
        pause();
        break;
    case MAP: /* and leave it mapped */
        over(mmap(NULL, order->count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
             order->count * PAGE, order->secret);
        break;
    case RIGHTS: /* which it takes for a moment only, so that its map is what it was */
        mprotect((void *)constant, sizeof constant, PROT_READ | PROT_WRITE);
        over((char *)constant, PAGE, order->secret);
        mprotect((void *)constant, sizeof constant, PROT_READ);
        break;
    case DISCARD: /* what it cannot write */
        madvise((void *)constant, PAGE, MADV_DONTNEED);
        break;
    case LOOK:
        return look();
    default:
        break;
    }
    return 0;
}

int main(void)
{
    pf_message m;

    heap = malloc(HEAP);
    memset(heap, 'h', HEAP);
    mapped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(mapped, 'm', 4 * PAGE);
    memset(pages, 'p', 8 * PAGE);
    touched = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(touched, 't', LARGE / 2);
    also = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(also, 'a', LARGE);
    untouched = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kept = open("/out/kept", O_CREAT | O_RDWR, 0644);
    write(kept, "at first", 8);
    close(open("/out/named", O_CREAT | O_RDWR, 0644));
    int shared = open("/out/shared", O_CREAT | O_RDWR, 0644);
    write(shared, "shared at first", 15);
    close(shared);
    while (pf_receive(&m, PF_FOREVER) == PF_OK) {
        struct order order;

        memcpy(&order, m.payload, sizeof order);
        uint64_t found = serve(&order);
        pf_send_inline(m.sender, &found, sizeof found, m.tag);
    }
    return 1;
}

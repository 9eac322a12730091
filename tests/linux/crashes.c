// Ends in the way that its argument says.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char constant[] = "not to be written";

__attribute__((noinline)) static void store(volatile int *where)
{
    *where = 1; // line 14
}

__attribute__((noinline)) static int divide(volatile int by)
{
    return 100 / by; // line 19
}

__attribute__((noinline)) static int deep(int n)
{
    volatile char room[4096];
    room[n % 4096] = (char)n;
    return deep(n + 1) + room[0];
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    puts("about to");
    fflush(stdout);
    write(2, "a last word\n", 12);
    if (!strcmp(how, "segfault"))
        store((int *)0x1234);
    if (!strcmp(how, "read-only"))
        store((int *)constant);
    if (!strcmp(how, "unmapped")) {
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(page, 4096);
        store((int *)page);
    }
    if (!strcmp(how, "jump"))
        ((void (*)(void))0x5000)();
    if (!strcmp(how, "data"))
        ((void (*)(void))(uintptr_t)argv)();
    if (!strcmp(how, "noncanonical"))
        store((int *)0x8000000000000000);
    if (!strcmp(how, "divide"))
        return divide(argc - 2);
    if (!strcmp(how, "illegal"))
        __builtin_trap();
    if (!strcmp(how, "breakpoint"))
        __asm__ volatile("int3");
    if (!strcmp(how, "privileged"))
        __asm__ volatile("hlt");
    if (!strcmp(how, "overflow"))
        return deep(0);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "term"))
        kill(getpid(), SIGTERM);
    if (!strcmp(how, "raise"))
        raise(SIGUSR1);
    if (!strcmp(how, "pipe")) {
        int ends[2];
        pipe(ends);
        close(ends[0]);
        write(ends[1], "x", 1);
    }
    if (!strcmp(how, "ignored pipe")) {
        int ends[2];
        signal(SIGPIPE, SIG_IGN);
        pipe(ends);
        close(ends[0]);
        return write(ends[1], "x", 1) == -1 ? 11 : 12;
    }
    return 5;
}

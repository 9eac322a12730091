// Calls on memory, with arguments that are right and wrong.
#include "calls.h"
#include <fcntl.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define NOTHING (MAP_PRIVATE | MAP_ANONYMOUS)

static char *map(unsigned long pages, int prot)
{
    return (char *)S(mmap, NULL, pages * PAGE, prot, NOTHING, -1, 0L);
}

// What can be read and written, asked without a fault.
static void rights(const char *what, char *at)
{
    char byte = 0;
    int out = S(open, "out/rights", O_RDWR | O_CREAT | O_TRUNC, 0600);
    long readable = S(write, out, at, 1);
    S(lseek, out, 0L, SEEK_SET);
    S(ftruncate, out, 1L);
    S(pread64, out, &byte, 1L, 0L);
    long writable = S(pread64, out, at, 1, 0L);
    if (writable == 1 && readable == 1)
        *at = byte;
    S(close, out);
    printf("%s: readable %d, writable %d\n", what, readable == 1, writable == 1);
}

static void mapping(void)
{
    char *p = map(8, PROT_READ | PROT_WRITE);
    printf("aligned %d, zero %d\n", !((uintptr_t)p % PAGE), p[0] == 0 && p[8 * PAGE - 1] == 0);
    T(mmap, NULL, 0L, PROT_READ, NOTHING, -1, 0L);
    T(mmap, NULL, PAGE, PROT_READ, 0, -1, 0L);
    T(mmap, NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0L);
    T(mmap, p + 1, PAGE, PROT_READ, NOTHING | MAP_FIXED, -1, 0L);
    T(mmap, NULL, 1UL << 60, PROT_READ, NOTHING, -1, 0L);
    T(mmap, NULL, -1UL, PROT_READ, NOTHING, -1, 0L);
    T(mmap, HIGH, PAGE * 100, PROT_READ, NOTHING | MAP_FIXED, -1, 0L);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, 99, 0L);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, 0, 0L);
    T(mmap, p, PAGE, PROT_READ, NOTHING | MAP_FIXED_NOREPLACE, -1, 0L);
    P(mmap, p + PAGE, PAGE, PROT_NONE, NOTHING | MAP_FIXED, -1, 0L);
    P(mmap, NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0L);
    P(mmap, NULL, PAGE, PROT_READ, NOTHING | MAP_NORESERVE | MAP_STACK, -1, 0L);
    P(mmap, NULL, PAGE, PROT_READ, NOTHING | MAP_POPULATE, -1, 0L);
    P(mmap, (void *)0x123456, PAGE, PROT_READ, NOTHING, -1, 0L);
    rights("first", p), rights("second", p + PAGE), rights("third", p + 2 * PAGE);
    T(munmap, p + PAGE, PAGE);
    T(munmap, p + PAGE, PAGE);
    T(munmap, p + 1, PAGE);
    T(munmap, p, 0L);
    T(munmap, HIGH, PAGE * 100);
    T(munmap, p, -PAGE);
    rights("first", p), rights("second", p + PAGE), rights("third", p + 2 * PAGE);
    P(mmap, p + PAGE, 1, PROT_READ | PROT_WRITE, NOTHING | MAP_FIXED, -1, 0L);
    rights("second", p + PAGE);
    p[PAGE] = 7;
    P(mmap, p + PAGE, PAGE, PROT_READ | PROT_WRITE, NOTHING | MAP_FIXED, -1, 0L);
    printf("again %d\n", p[PAGE]);
    T(munmap, p, 8 * PAGE);
    rights("gone", p + 7 * PAGE);
}

static void protecting(void)
{
    char *p = map(4, PROT_READ | PROT_WRITE);
    memset(p, 'x', 4 * PAGE);
    T(mprotect, p + PAGE, PAGE, PROT_READ);
    T(mprotect, p + 2 * PAGE, PAGE, PROT_NONE);
    rights("first", p), rights("second", p + PAGE), rights("third", p + 2 * PAGE);
    T(mprotect, p + 1, PAGE, PROT_READ);
    T(mprotect, p, 0L, PROT_READ);
    T(mprotect, p, PAGE, 0xff00);
    T(munmap, p + 3 * PAGE, PAGE);
    T(mprotect, p + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE);
    rights("third", p + 2 * PAGE);
    printf("kept %c\n", p[2 * PAGE]);
    T(mprotect, p, -PAGE, PROT_READ);
    T(mprotect, NULL, PAGE, PROT_READ);
    T(mprotect, p, 3 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    T(madvise, p, PAGE, MADV_DONTNEED);
    printf("%d %c\n", p[0], p[PAGE]);
    T(madvise, p + 1, PAGE, MADV_DONTNEED);
    T(madvise, p, PAGE, 12345);
    T(madvise, p, 0L, MADV_DONTNEED);
    T(madvise, p + 2 * PAGE, 2 * PAGE, MADV_DONTNEED);
    printf("%d\n", p[2 * PAGE]);
    T(madvise, p, -PAGE, MADV_DONTNEED);
    T(madvise, p, PAGE, MADV_WILLNEED);
    T(madvise, p, PAGE, MADV_SEQUENTIAL);
    T(madvise, p, PAGE, MADV_FREE);
    T(madvise, p, PAGE, MADV_HUGEPAGE);
    T(msync, p, PAGE, MS_SYNC);
    T(msync, p, PAGE, MS_SYNC | MS_ASYNC);
    T(msync, p + 1, PAGE, MS_SYNC);
    T(msync, p + 3 * PAGE, PAGE, MS_SYNC);
    T(msync, p, PAGE, 77);
    char vector[4] = {0};
    p[0] = 1;
    T(mincore, p, PAGE, vector);
    printf("%d\n", vector[0]);
    T(mincore, p + 1, PAGE, vector);
    T(mincore, p + 2 * PAGE, 2 * PAGE, vector);
    T(mincore, p, PAGE, BAD);
    T(mincore, p, 0L, vector);
    T(mlock, p, PAGE);
    T(munlock, p, PAGE);
    T(mlock, p + 3 * PAGE, PAGE);
    T(mlock2, p, PAGE, 0);
    T(mlock2, p, PAGE, 77);
    T(munlockall);
    T(mlockall, 0);
    T(mlockall, 77);
    T(munmap, p, 3 * PAGE);
}

static void moving(void)
{
    char *p = map(4, PROT_READ | PROT_WRITE), *q;
    strcpy(p, "moved");
    p[3 * PAGE] = 'e';
    T(mremap, p, PAGE, 0L, 0);
    T(mremap, p + 1, PAGE, PAGE, 0);
    T(mremap, p, 4 * PAGE, PAGE, 77);
    T(mremap, p, 4 * PAGE, 4 * PAGE, MREMAP_FIXED, p + 8 * PAGE);
    T(mremap, p, PAGE, 2 * PAGE, 0);
    T(mremap, BAD, PAGE, 2 * PAGE, 0);
    T(mremap, (void *)PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
    T(mremap, p, 4 * PAGE, 1UL << 60, MREMAP_MAYMOVE);
    T(mremap, p, -PAGE, PAGE, MREMAP_MAYMOVE);
    printf("same %d\n", (char *)S(mremap, p, 4 * PAGE, 2 * PAGE, 0) == p);
    rights("cut", p + 2 * PAGE);
    q = map(16, PROT_READ);
    printf("there %d\n", (char *)S(mremap, p, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
    printf("%s %d\n", q, q[2 * PAGE]);
    rights("old", p), rights("new", q + 2 * PAGE), rights("after", q + 3 * PAGE);
    T(mremap, q, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q);
    T(mremap, q, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q + PAGE);
    T(mremap, q, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q + 1);
    p = (char *)S(mremap, q, PAGE, 100 * PAGE, MREMAP_MAYMOVE);
    printf("%s %d\n", p, p[99 * PAGE]);
    T(munmap, p, 100 * PAGE);
}

static void heap(void)
{
    char *start = (char *)S(brk, 0L);
    printf("grown %ld\n", (char *)S(brk, start + 10000) - start);
    memset(start, 'h', 10000);
    printf("less %ld\n", (char *)S(brk, start + 100) - start);
    printf("grown %ld\n", (char *)S(brk, start + 10000) - start);
    int zero = 1;
    for (long at = 4096 - (uintptr_t)start % 4096 + 4096; at < 10000; at++)
        zero &= start[at] == 0;
    printf("zero %d, kept %c\n", zero, start[50]);
    printf("too far %ld\n", (char *)S(brk, -1L) - start);
    printf("too far %ld\n", (char *)S(brk, 1UL << 45) - start);
    printf("too low %ld\n", (char *)S(brk, 4096L) - start);
    printf("back %ld\n", (char *)S(brk, start) - start);
}

static void files(void)
{
    int in = S(open, "in/words", O_RDONLY), out = S(open, "out/mapped", O_RDWR | O_CREAT, 0600);
    int only = S(open, "out/mapped", O_WRONLY);
    T(write, out, "contents", 8);
    char *p = (char *)S(mmap, NULL, 100L, PROT_READ | PROT_WRITE, MAP_PRIVATE, in, 0L);
    printf("%.9s %d\n", p, p[4095]);
    p[0] = 'T';
    char byte;
    T(pread64, in, &byte, 1L, 0L);
    printf("%c %c\n", p[0], byte);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, in, 1L);
    T(mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, in, 0L);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, only, 0L);
    T(mmap, NULL, PAGE, PROT_READ, 77, in, 0L);
    P(mmap, NULL, PAGE, PROT_READ, MAP_SHARED, in, 0L);
    P(mmap, NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, in, 0L);
    P(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, out, 0L);
    T(close, in);
    printf("%.9s\n", p + 4);
    T(munmap, p, 100L);
    int dir = S(open, "in", O_RDONLY);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, dir, 0L);
    int zero = S(open, "/dev/zero", O_RDWR);
    p = (char *)S(mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0L);
    printf("%d\n", p != MAP_FAILED && p[5] == 0 && (p[5] = 6) == 6);
    int null = S(open, "/dev/null", O_RDWR);
    T(mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, null, 0L);
}

int main(void)
{
    mapping();
    protecting();
    moving();
    heap();
    files();
    return 0;
}

// A file that is mapped, shared and to be written: what one sees is what all others see.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL

static void look(const char *what, int fd, long at)
{
    char text[9] = "";
    long got = pread(fd, text, 8, at);
    printf("%s: %ld '%s'\n", what, got, text);
}

static char *map(int fd, unsigned long size, long offset)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (p == MAP_FAILED)
        printf("map: %d\n", errno);
    return p;
}

int main(void)
{
    int fd = open("out/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, 40 * PAGE);
    pwrite(fd, "before", 6, PAGE);
    char *p = map(fd, 20 * PAGE, 0);
    printf("mapped: '%s' '%s'\n", p, p + PAGE);
    strcpy(p, "mapped"), strcpy(p + 17 * PAGE, "second chunk");
    look("read", fd, 0), look("read", fd, 17 * PAGE);
    pwrite(fd, "written", 8, 2 * PAGE - 3);
    printf("write: '%s'\n", p + 2 * PAGE - 3);
    printf("sync: %d\n", msync(p, 20 * PAGE, MS_SYNC));
    char *q = map(fd, PAGE, 30 * PAGE);
    strcpy(q, "another");
    look("read", fd, 30 * PAGE);
    printf("unmap: %d\n", munmap(p + PAGE, PAGE));
    look("read", fd, PAGE), look("read", fd, 0);
    munmap(p + 17 * PAGE, 3 * PAGE), look("read", fd, 17 * PAGE);
    ftruncate(fd, 5), look("cut", fd, 0);
    ftruncate(fd, 3 * PAGE), look("grown", fd, 0), look("grown", fd, 2 * PAGE);
    printf("grown: '%s' '%s'\n", p, p + 2 * PAGE);
    strcpy(p + 2 * PAGE, "after all"), look("read", fd, 2 * PAGE);
    mprotect(p, PAGE, PROT_READ), look("read", fd, 0);
    char *anonymous = mmap(p, PAGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    printf("replaced: '%s'\n", anonymous);
    strcpy(anonymous, "private"), look("read", fd, 0);
    int other = open("out/file", O_RDONLY);
    look("other", other, 2 * PAGE);
    close(other), close(fd);
    strcpy(p + 2 * PAGE, "closed");
    fd = open("out/gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, 2 * PAGE);
    q = map(fd, 2 * PAGE, 0);
    unlink("out/gone"), strcpy(q, "nameless"), look("unlinked", fd, 0);
    close(fd);
    printf("closed: '%s'\n", q), munmap(q, 2 * PAGE);
    for (int i = 0; i < 300; i++) { // none of it stays
        fd = memfd_create("many", 0);
        ftruncate(fd, PAGE);
        q = map(fd, PAGE, 0);
        q[0] = 'x';
        munmap(q, PAGE);
        if (i % 100 == 0)
            look("memfd", fd, 0);
        close(fd);
    }
    return 0;
}

// What system calls answer, printed: each as its text, its result and its error.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void told(const char *what, long result, int pointer)
{
    if (result == -1)
        printf("%s: error %d %s\n", what, errno, strerror(errno));
    else if (pointer)
        printf("%s: an address\n", what);
    else
        printf("%s: %ld\n", what, result);
}

#define S(name, ...) syscall(SYS_##name, ##__VA_ARGS__)
// Tell of a call: T what it returns, P that it returns an address.
#define T(name, ...) \
    do { errno = 0; told(#name "(" #__VA_ARGS__ ")", S(name, ##__VA_ARGS__), 0); } while (0)
#define P(name, ...) \
    do { errno = 0; told(#name "(" #__VA_ARGS__ ")", S(name, ##__VA_ARGS__), 1); } while (0)
#define BAD ((void *)-4096L)
#define HIGH ((void *)0x7fffffffffff0000UL)

/* What runs before and after main, what is there then, and thread-local variables. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern char **environ;

static int order[8], ordered;
static char early[64];

__attribute__((constructor(102))) static void second(void)
{
    order[ordered++] = 2;
}

__attribute__((constructor(101))) static void first(void)
{
    order[ordered++] = 1;
    snprintf(early, sizeof early, "printf before main: %.2f", 1.5);
}

__attribute__((constructor)) static void third(void)
{
    order[ordered++] = 3;
    order[ordered++] = getenv("A") != NULL;
}

__attribute__((destructor)) static void last(void)
{
    write(1, "destructor\n", 11);
}

static void at_exit_1(void)
{
    puts("first registered, last called");
}

static void at_exit_2(void)
{
    puts("last registered, first called");
}

static _Thread_local int counter = 41;
static _Thread_local char zeros[3000];
static _Thread_local struct {
    double value;
    const char *text;
} __attribute__((aligned(64))) mixed = { 2.5, "pointed to" };
static int bss[100000];

int main(int argc, char **argv)
{
    for (int i = 0; i < ordered; i++)
        printf("%d ", order[i]);
    printf("\n%s\n", early);
    for (int i = 1; i < argc; i++)
        printf("argument %d: %s\n", i, argv[i]);
    printf("argv ends: %d\n", argv[argc] == NULL);
    for (char **entry = environ; *entry; entry++)
        printf("environment: %s\n", *entry);
    counter++;
    long sum = 0;
    for (size_t i = 0; i < sizeof zeros; i++)
        sum += zeros[i];
    for (size_t i = 0; i < sizeof bss / sizeof *bss; i++)
        sum += bss[i];
    printf("thread-local: %d %ld %g %s %d\n", counter, sum, mixed.value, mixed.text, (uintptr_t)&mixed % 64 == 0);
    printf("page size: %ld %lu\n", sysconf(_SC_PAGESIZE), getauxval(AT_PAGESZ));
    printf("told: %d %d %d\n", getauxval(AT_PHDR) != 0, getauxval(AT_RANDOM) != 0, getauxval(AT_ENTRY) != 0);
    printf("secure: %lu, ends in a name: %d\n", getauxval(AT_SECURE), strlen((char *)getauxval(AT_EXECFN)) > 0);
    atexit(at_exit_1);
    atexit(at_exit_2);
    exit(argc);
}

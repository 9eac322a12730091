/* SPDX-License-Identifier: Apache-2.0
 *
 * Constructors before main, in the order of their priorities, and destructors after it, in the reverse; thread-local
 * variables in all of them; and main's arguments. */
#include "pf.h"

static _Thread_local int counter = 5;
static _Thread_local char zeros[5000];
static _Thread_local struct { uint64_t x; } aligned __attribute__((aligned(256))) = { 7 };
static _Thread_local char odd[3] = "ab";

__attribute__((constructor)) static void third(void) { pf_printf("third %d", counter++); }
__attribute__((constructor(500))) static void second(void) { pf_printf("second %d", counter++); }
__attribute__((constructor(101))) static void first(void) { pf_printf("first %d", counter++); }
__attribute__((destructor)) static void eighth(void) { pf_printf("eighth %d", counter++); }
__attribute__((destructor(500))) static void ninth(void) { pf_printf("ninth %d", counter++); pf_exit(counter); }
__attribute__((destructor(101))) static void tenth(void) { pf_printf("tenth %d", counter++); }

__attribute__((noinline)) static int *of_the_thread(void)
{
    return &counter;
}

int main(int argc, char **argv)
{
    int set = 0;

    for (size_t i = 0; i < sizeof zeros; i++)
        set += zeros[i] != 0;
    zeros[4999] = 1;
    pf_printf("main %d %d %lu %lu %s", *of_the_thread(), set, aligned.x, (uintptr_t)&aligned % 256, odd);
    pf_printf("%d %s %s", argc, argv[0], argv[argc] ? "more" : "that is all");
    counter = 10;
    if (PF->self % 2)
        pf_exit(1);
    return 1;
}

/* Vector registers are the program's own, whatever exits in between and whoever else runs. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#define ROUNDS 2000

/* Fills a register, makes a system call, and tells what is in the register then: in one piece, since compilers clear
 * registers between calls. */
#define KEPT(fill, store)                                                                                              \
    __asm__ volatile(fill "\n\tsyscall\n\t" store                                                                      \
                     : "=m"(out), "+a"(call)                                                                           \
                     : "r"(value), "D"(&short_time), "S"(0)                                                            \
                     : "rcx", "r11", "memory", "xmm15")

static const struct timespec short_time = {0, 100000};

__attribute__((target("avx2"))) static int differ_avx2(long value, long call)
{
    long out[4];
    int differ = 0;

    KEPT("vmovq %2, %%xmm15\n\tvpbroadcastq %%xmm15, %%ymm15", "vmovdqu %%ymm15, %0");
    for (int i = 0; i < 4; i++)
        differ += out[i] != value;
    return differ;
}

__attribute__((target("avx512f"))) static int differ_avx512(long value, long call)
{
    long out[8];
    int differ = 0;

    KEPT("vpbroadcastq %2, %%zmm31", "vmovdqu64 %%zmm31, %0");
    for (int i = 0; i < 8; i++)
        differ += out[i] != value;
    return differ;
}

int main(int argc, char **argv)
{
    long seed = argc > 1 ? atol(argv[1]) : 1;
    int differ = 0;

    __builtin_cpu_init();
    for (int round = 0; round < ROUNDS; round++) {
        long value = seed * 1000003 + round, call = round % 32 ? SYS_getppid : SYS_nanosleep;

        if (__builtin_cpu_supports("avx2"))
            differ += differ_avx2(value, call);
        if (__builtin_cpu_supports("avx512f"))
            differ += differ_avx512(value, call);
    }
    printf("%d of the values differ\n", differ);
    return differ != 0;
}

/* setjmp and longjmp, out of deep calls and out of the C library's. */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static jmp_buf back;
static sigjmp_buf with_signals;
static volatile int enough;

static int deep(int depth)
{
    volatile char room[200];

    room[depth % 200] = (char)depth;
    if (depth == 5000)
        longjmp(back, depth);
    if (enough)
        return 0;
    return deep(depth + 1) + room[depth % 200];
}

static int compare(const void *a, const void *b)
{
    static int calls;

    if (++calls == 10)
        longjmp(back, 10);
    return *(const int *)a - *(const int *)b;
}

static void out_of_qsort(void)
{
    int numbers[100];

    for (int i = 0; i < 100; i++)
        numbers[i] = i * 7 % 100;
    qsort(numbers, 100, sizeof *numbers, compare);
}

int main(void)
{
    volatile int count = 0;
    double volatile kept = 1.25;
    int value = setjmp(back);

    printf("came with %d, count %d, kept %g\n", value, count, kept);
    count++;
    kept *= 2;
    if (count == 1)
        deep(0);
    if (count == 2)
        out_of_qsort();
    if (count == 3)
        longjmp(back, 0); /* is 1 */
    value = sigsetjmp(with_signals, 1);
    printf("with signals %d\n", value);
    if (value < 3)
        siglongjmp(with_signals, value + 1);
    return count;
}

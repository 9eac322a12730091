/* Memory: small and large blocks, grown, moved and checked; then all that there is, to the limit, twice. */
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 4096
#define MOST (1 << 20)

static uint32_t state = 12345;

static uint32_t draw(uint32_t below)
{
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
}

static int holds(const unsigned char *block, size_t bytes, int value)
{
    for (size_t i = 0; i < bytes; i++)
        if (block[i] != value)
            return 0;
    return 1;
}

static void many(void)
{
    static unsigned char *blocks[BLOCKS];
    static size_t sizes[BLOCKS];
    int wrong = 0;

    for (int round = 0; round < 30000; round++) {
        int i = (int)draw(BLOCKS);
        if (blocks[i] && !holds(blocks[i], sizes[i], i & 0xff))
            wrong++;
        size_t bytes = draw(100) ? draw(2000) : draw(300000);
        blocks[i] = realloc(blocks[i], bytes + 1);
        sizes[i] = bytes;
        memset(blocks[i], i & 0xff, bytes);
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    printf("many: %d wrong\n", wrong);
}

static void odd_ones(void)
{
    unsigned char *zeros = calloc(1000, 5000);
    void *aligned = aligned_alloc(4096, 3 * 4096), *memory = NULL;

    printf("calloc: %d\n", holds(zeros, 5000000, 0));
    printf("aligned: %d\n", (uintptr_t)aligned % 4096 == 0);
    printf("posix_memalign: %d %d\n", posix_memalign(&memory, 64, 100), (uintptr_t)memory % 64 == 0);
    printf("malloc(0): %d\n", malloc(0) != NULL);
    volatile size_t huge = PTRDIFF_MAX;
    void *volatile block = malloc(huge); /* or compilers take it that there is always memory */
    printf("huge: %d %s\n", block == NULL, strerror(errno));
    block = calloc(huge, 16);
    printf("calloc that overflows: %d\n", block == NULL);
    unsigned char *grown = NULL;
    for (size_t bytes = 1; bytes <= 16 << 20; bytes *= 2) {
        grown = realloc(grown, bytes);
        memset(grown + bytes / 2, 0x5a, bytes - bytes / 2);
    }
    printf("grown: %d\n", holds(grown, 16 << 20, 0x5a));
    free(zeros);
    free(aligned);
    free(memory);
    free(grown);
}

/* A list of blocks, each touched, until there are no more; how many there were. */
static int to_the_limit(void)
{
    void *list = NULL;
    int count = 0;

    for (;;) {
        void **block = malloc(MOST);
        if (!block)
            break;
        memset(block, count & 0xff, MOST);
        *block = list;
        list = block;
        count++;
    }
    int error = errno, value = count, wrong = 0;
    while (list) {
        void *next = *(void **)list;
        value--;
        wrong += !holds((unsigned char *)list + sizeof next, MOST - sizeof next, value & 0xff);
        free(list);
        list = next;
    }
    printf("the limit: %s, %d wrong\n", strerror(error), wrong);
    return count;
}

int main(int argc, char **argv)
{
    many();
    odd_ones();
    if (argc > 1) { /* about how many MiB there are */
        int first = to_the_limit(), second = to_the_limit();
        printf("as many again: %d\n", second >= first - 1);
        printf("about as many as there are: %d\n", first <= atoi(argv[1]) && first >= atoi(argv[1]) / 2);
    }
    return 0;
}

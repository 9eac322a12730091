/* qsort and bsearch, of numbers, strings and structures. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 200000

struct pair {
    int key;
    char text[20];
};

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int by_key(const void *a, const void *b)
{
    return ((const struct pair *)a)->key - ((const struct pair *)b)->key;
}

int main(void)
{
    uint32_t *numbers = malloc(COUNT * sizeof *numbers), x = 1, total = 0;

    for (int i = 0; i < COUNT; i++)
        numbers[i] = x = x * 1664525 + 1013904223;
    qsort(numbers, COUNT, sizeof *numbers, by_value);
    for (int i = 1; i < COUNT; i++) {
        if (numbers[i - 1] > numbers[i])
            puts("out of order");
        total = total * 31 + numbers[i];
    }
    printf("%08x %u %u\n", total, numbers[0], numbers[COUNT - 1]);
    uint32_t *found = bsearch(&numbers[777], numbers, COUNT, sizeof *numbers, by_value);
    printf("%td\n", found - numbers);

    char **words = malloc(1000 * sizeof *words);
    for (int i = 0; i < 1000; i++) {
        words[i] = malloc(16);
        snprintf(words[i], 16, "w%u", numbers[(i * 7919) % COUNT] % 100000);
    }
    qsort(words, 1000, sizeof *words, by_text);
    for (int i = 0; i < 1000; i += 111)
        printf("%s ", words[i]);
    putchar('\n');

    struct pair pairs[50];
    for (int i = 0; i < 50; i++) {
        pairs[i].key = i * 37 % 50;
        snprintf(pairs[i].text, sizeof pairs[i].text, "number %d", i);
    }
    qsort(pairs, 50, sizeof *pairs, by_key);
    for (int i = 0; i < 50; i += 7)
        printf("%d %s, ", pairs[i].key, pairs[i].text);
    putchar('\n');
    return 0;
}

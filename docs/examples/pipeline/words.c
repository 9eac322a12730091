/* The second stage: it counts words, and prints the most frequent ones at the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stage.h"

#define SLOTS (1u << 20)
#define LONGEST 64
#define SHOWN 5

struct word {
    char text[LONGEST];
    unsigned count;
};

static struct word *table; /* open addressing, by a hash */
static struct word next;   /* which may go on in the next block */
static size_t length, words;

static void end_of_word(void)
{
    uint32_t hash = 2166136261u;

    if (!length)
        return;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)next.text[i]) * 16777619u;
    struct word *slot = &table[hash % SLOTS];
    while (slot->count && strcmp(slot->text, next.text))
        slot = slot + 1 < table + SLOTS ? slot + 1 : table;
    if (!slot->count++) {
        memcpy(slot->text, next.text, LONGEST);
        PF_CHECK(++words < SLOTS);
    }
    memset(next.text, 0, length);
    length = 0;
}

static int more_frequent(const void *a, const void *b)
{
    const struct word *x = a, *y = b;

    return x->count != y->count ? (x->count < y->count ? 1 : -1) : strcmp(x->text, y->text);
}

int main(void)
{
    struct block block;

    table = calloc(SLOTS, sizeof *table);
    PF_CHECK(table);
    while (next_block(&block)) {
        for (size_t i = 0; i < block.count; i++) {
            if (block.bytes[i] < 'a' || block.bytes[i] > 'z')
                end_of_word();
            else if (length < LONGEST - 1)
                next.text[length++] = (char)block.bytes[i];
        }
        pass_on(&block, pf_peer("checksum"));
    }
    end_of_word();
    PF_CHECK(pf_send_inline(pf_peer("checksum"), "", 0, 0) == PF_OK);
    qsort(table, SLOTS, sizeof *table, more_frequent);
    for (int i = 0; i < SHOWN && table[i].count; i++)
        printf("%u %s\n", table[i].count, table[i].text);
    return 0;
}

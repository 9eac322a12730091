/* SPDX-License-Identifier: Apache-2.0
 *
 * What `pageferry bench` has programs for Linux do: in a machine, by its floor, and run by the host itself. It needs no C
 * library, and no compiler where it runs.
 *
 *     bench_program calls ROUNDS         one getppid
 *     bench_program read ROUNDS FILE     64 KiB of a file read, from the beginning again at its end
 *     bench_program sha256 BYTES         of memory that has been written
 *     bench_program sort COUNT           numbers of 32 bits
 *     bench_program tree COUNT           keys put into a B-tree, all looked for, and counted in order
 *     bench_program touch BYTES PIECE    memory that has not been touched, mapped in pieces of as many bytes
 *
 * Writes the samples to standard output: 64-bit numbers, in ticks of the time-stamp counter. Ends with 1 if what it has
 * computed is wrong, with 2 if it was asked for what it does not do. */
#include <stddef.h>
#include <stdint.h>

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_LSEEK = 8, SYS_MMAP = 9, SYS_GETPPID = 110, SYS_EXIT = 231 };

#define MOST 65536 /* samples */
#define PIECE 65536
#define PAGE 4096

static uint64_t samples[MOST];
static char piece[PIECE] __attribute__((aligned(PAGE)));

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

_Noreturn static void leave(int code)
{
    for (;;)
        call(SYS_EXIT, code, 0, 0, 0, 0, 0);
}

static void answer(uint64_t count)
{
    const char *next = (const char *)samples;
    long left = (long)(count * sizeof *samples);

    while (left > 0) {
        long taken = call(SYS_WRITE, 1, (long)next, left, 0, 0, 0);

        if (taken <= 0)
            leave(1);
        next += taken;
        left -= taken;
    }
    leave(0);
}

static uint64_t ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static void *map(size_t bytes)
{
    long at = call(SYS_MMAP, 0, (long)bytes, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);

    if (at < 0 && at > -PAGE)
        leave(1);
    return (void *)at;
}

static uint64_t chance(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- System calls ---- */

static void calls(uint64_t rounds)
{
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t start = ticks();

        call(SYS_GETPPID, 0, 0, 0, 0, 0, 0);
        samples[i] = ticks() - start;
    }
    answer(rounds);
}

static void reads(uint64_t rounds, const char *path)
{
    long file = call(SYS_OPEN, (long)path, 0, 0, 0, 0, 0);

    if (file < 0)
        leave(1);
    for (long i = 0; i < PIECE; i += PAGE)
        ((volatile char *)piece)[i] = 1;
    for (uint64_t i = 0; i < rounds;) {
        uint64_t start = ticks();
        long got = call(SYS_READ, file, (long)piece, PIECE, 0, 0, 0);

        samples[i] = ticks() - start;
        if (got == PIECE)
            i++;
        else if (got != 0 || call(SYS_LSEEK, file, 0, 0, 0, 0, 0) != 0)
            leave(1);
    }
    answer(rounds);
}

/* ---- Computing ---- */

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t value, int by)
{
    return value >> by | value << (32 - by);
}

static void block(uint32_t *state, const unsigned char *data)
{
    uint32_t w[64], s[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 | (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;

        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    for (int i = 0; i < 8; i++)
        s[i] = state[i];
    for (int i = 0; i < 64; i++) {
        uint32_t a = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
        uint32_t b = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
        uint32_t one = s[7] + a + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
        uint32_t two = b + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + one;
        s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static void hash(uint32_t *state, const unsigned char *data, uint64_t bytes)
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char last[64] = {0x80};

    for (int i = 0; i < 8; i++)
        state[i] = first[i];
    for (uint64_t at = 0; at < bytes; at += 64)
        block(state, data + at);
    for (int i = 0; i < 8; i++)
        last[56 + i] = (unsigned char)(bytes * 8 >> (56 - 8 * i));
    block(state, last);
}

/* `bytes` is a multiple of 64. */
static void sha256(uint64_t bytes)
{
    static const unsigned char zeros[64];
    uint64_t seed = 88172645463325252u, *words = map(bytes), start;
    uint32_t digest[8];

    hash(digest, zeros, sizeof zeros); /* f5a5fd42d16a2030… */
    if (digest[0] != 0xf5a5fd42 || digest[1] != 0xd16a2030)
        leave(1);
    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = chance(&seed);
    start = ticks();
    hash(digest, (const unsigned char *)words, bytes);
    samples[0] = ticks() - start;
    answer(1);
}

static void swap(uint32_t *a, uint32_t *b)
{
    uint32_t kept = *a;

    *a = *b;
    *b = kept;
}

static void quicksort(uint32_t *numbers, int64_t low, int64_t high)
{
    while (high - low > 16) {
        int64_t i = low, j = high, middle = low + (high - low) / 2;

        if (numbers[middle] < numbers[low])
            swap(&numbers[middle], &numbers[low]);
        if (numbers[high] < numbers[low])
            swap(&numbers[high], &numbers[low]);
        if (numbers[high] < numbers[middle])
            swap(&numbers[high], &numbers[middle]);
        uint32_t pivot = numbers[middle];
        while (i <= j) {
            while (numbers[i] < pivot)
                i++;
            while (numbers[j] > pivot)
                j--;
            if (i <= j)
                swap(&numbers[i++], &numbers[j--]);
        }
        if (j - low < high - i) {
            quicksort(numbers, low, j);
            low = i;
        } else {
            quicksort(numbers, i, high);
            high = j;
        }
    }
    for (int64_t i = low + 1; i <= high; i++)
        for (int64_t j = i; j > low && numbers[j] < numbers[j - 1]; j--)
            swap(&numbers[j], &numbers[j - 1]);
}

static void sort(uint64_t count)
{
    uint64_t seed = 88172645463325252u, start;
    uint32_t *numbers = map(count * sizeof *numbers);

    for (uint64_t i = 0; i < count; i++)
        numbers[i] = (uint32_t)chance(&seed);
    start = ticks();
    quicksort(numbers, 0, (int64_t)count - 1);
    samples[0] = ticks() - start;
    for (uint64_t i = 1; i < count; i++)
        if (numbers[i - 1] > numbers[i])
            leave(1);
    answer(1);
}

/* A B-tree as a database has it: nodes of a page, allocated as they are wanted. */
#define KEYS 254

struct node {
    uint32_t count, leaf;
    uint64_t keys[KEYS];
    uint32_t children[KEYS + 1]; /* by number */
    uint32_t unused;
};

static struct node *nodes;
static uint32_t next_node;

static uint32_t make(uint32_t leaf)
{
    struct node *made = &nodes[next_node];

    made->count = 0;
    made->leaf = leaf;
    return next_node++;
}

static uint32_t place(const struct node *node, uint64_t key)
{
    uint32_t low = 0, high = node->count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (node->keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void split(struct node *parent, uint32_t at)
{
    struct node *full = &nodes[parent->children[at]];
    uint32_t number = make(full->leaf), half = KEYS / 2;
    struct node *other = &nodes[number];

    other->count = KEYS - half - 1;
    for (uint32_t i = 0; i < other->count; i++)
        other->keys[i] = full->keys[half + 1 + i];
    for (uint32_t i = 0; !full->leaf && i <= other->count; i++)
        other->children[i] = full->children[half + 1 + i];
    full->count = half;
    for (uint32_t i = parent->count; i > at; i--) {
        parent->keys[i] = parent->keys[i - 1];
        parent->children[i + 1] = parent->children[i];
    }
    parent->keys[at] = full->keys[half];
    parent->children[at + 1] = number;
    parent->count++;
}

static uint32_t insert(uint32_t root, uint64_t key)
{
    struct node *node = &nodes[root];

    if (node->count == KEYS) {
        uint32_t top = make(0);

        nodes[top].children[0] = root;
        split(&nodes[top], 0);
        root = top;
        node = &nodes[top];
    }
    while (!node->leaf) {
        uint32_t at = place(node, key);

        if (nodes[node->children[at]].count == KEYS) {
            split(node, at);
            at += node->keys[at] < key;
        }
        node = &nodes[node->children[at]];
    }
    uint32_t at = place(node, key);
    for (uint32_t i = node->count; i > at; i--)
        node->keys[i] = node->keys[i - 1];
    node->keys[at] = key;
    node->count++;
    return root;
}

static int contains(uint32_t root, uint64_t key)
{
    for (const struct node *node = &nodes[root];; node = &nodes[node->children[place(node, key)]]) {
        uint32_t at = place(node, key);

        if (at < node->count && node->keys[at] == key)
            return 1;
        if (node->leaf)
            return 0;
    }
}

/* Counts the keys that are in order. */
static uint64_t walk(uint32_t root, uint64_t *last)
{
    const struct node *node = &nodes[root];
    uint64_t count = 0;

    for (uint32_t i = 0; i <= node->count; i++) {
        if (!node->leaf)
            count += walk(node->children[i], last);
        if (i < node->count) {
            count += node->keys[i] > *last;
            *last = node->keys[i];
        }
    }
    return count;
}

static void fill(uint64_t count)
{
    uint64_t seed = 88172645463325252u, last = 0;

    next_node = 0;
    uint32_t root = make(1);
    for (uint64_t i = 0; i < count; i++)
        root = insert(root, chance(&seed));
    seed = 88172645463325252u;
    for (uint64_t i = 0; i < count; i++)
        if (!contains(root, chance(&seed)))
            leave(1);
    if (walk(root, &last) != count)
        leave(1);
}

static void tree(uint64_t count)
{
    uint64_t start;

    nodes = map((count / (KEYS / 2) * 2 + 16) * sizeof *nodes);
    fill(count); /* which touches it */
    start = ticks();
    fill(count);
    samples[0] = ticks() - start;
    answer(1);
}

/* ---- Memory ---- */

static void touch(uint64_t bytes, uint64_t each)
{
    uint64_t start = ticks();

    for (uint64_t done = 0; done < bytes; done += each) {
        volatile char *at = map(each);

        if (each >= 2u << 20)
            call(28 /* madvise */, (long)at, (long)each, 14 /* MADV_HUGEPAGE */, 0, 0, 0);
        for (uint64_t i = 0; i < each; i += PAGE)
            at[i] = 1;
    }
    samples[0] = ticks() - start;
    answer(1);
}

static uint64_t number(const char *text)
{
    uint64_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint64_t)(*text++ - '0');
    return value;
}

static int is(const char *text, const char *other)
{
    while (*text && *text == *other)
        text++, other++;
    return *text == *other;
}

__attribute__((used)) _Noreturn static void start(long *stack)
{
    char **words = (char **)stack + 2; /* argc and the name come first */
    long count = stack[0] - 1;
    uint64_t much = count > 1 ? number(words[1]) : 0;

    if (count == 2 && is(words[0], "calls") && much <= MOST)
        calls(much);
    if (count == 3 && is(words[0], "read") && much <= MOST)
        reads(much, words[2]);
    if (count == 2 && is(words[0], "sha256") && much % 64 == 0)
        sha256(much);
    if (count == 2 && is(words[0], "sort"))
        sort(much);
    if (count == 2 && is(words[0], "tree"))
        tree(much);
    if (count == 3 && is(words[0], "touch") && number(words[2]))
        touch(much, number(words[2]));
    leave(2);
}

__asm__(".globl _start\n_start:\n    mov %rsp, %rdi\n    and $-16, %rsp\n    call start\n");

void *memset(void *to, int value, size_t bytes);
void *memcpy(void *to, const void *from, size_t bytes);

void *memset(void *to, int value, size_t bytes)
{
    for (volatile char *at = to; bytes--;)
        *at++ = (char)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t bytes)
{
    const char *other = from;

    for (volatile char *at = to; bytes--;)
        *at++ = *other++;
    return to;
}

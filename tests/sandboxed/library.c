/* SPDX-License-Identifier: Apache-2.0
 * A library of everything that functions take and return, for tests/kvm/test_sandbox.py. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct point {
    int x;
    double y;
};

struct big {
    double values[5];
    char name[16];
};

enum colour { RED, GREEN = 7 };

/* ---- numbers ---- */

int add(int a, int b)
{
    return a + b;
}

uint64_t widest(uint64_t value)
{
    return value;
}

float half(float value)
{
    return value / 2;
}

bool negate(bool value)
{
    return !value;
}

char next_letter(char letter)
{
    return (char)(letter + 1);
}

enum colour paint(enum colour colour)
{
    return colour == RED ? GREEN : RED;
}

double all_registers(int a, int b, int c, int d, int e, int f, int g, int h, double i, float j, double k, double l, double m,
                     double n, double o, double p, double q, int16_t r)
{
    return a + 2. * b + 3. * c + 4. * d + 5. * e + 6. * f + 7. * g + 8. * h + 9. * i + 10. * j + 11. * k + 12. * l + 13. * m +
           14. * n + 15. * o + 16. * p + 17. * q + 18. * r;
}

/* ---- structures and text ---- */

struct point moved(struct point point, double by)
{
    return (struct point){point.x + 1, point.y + by};
}

struct big renamed(struct big big, const char *name)
{
    snprintf(big.name, sizeof big.name, "%s", name);
    return big;
}

void place_at(struct point *point, int x)
{
    point->x = x;
}

const char *greeting(const char *name)
{
    static char text[64];

    snprintf(text, sizeof text, "hello %s", name ? name : "nobody");
    return text;
}

size_t length_of(const char *text)
{
    return strlen(text);
}

const char *not_text(void)
{
    return (const char *)16;
}

/* ---- memory ---- */

uint64_t total(const uint8_t *bytes, size_t count)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < count; i++)
        sum += bytes[i];
    return sum;
}

void shift(int count, double values[count], double by)
{
    for (int i = 0; i < count; i++)
        values[i] += by;
}

void scale(double *values, int count, double by)
{
    for (int i = 0; i < count; i++)
        values[i] *= by;
}

void copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

int write_through_const(const int *value)
{
    return *(int *)value = 1;
}

/* Reads or writes anywhere; what it may not ends it. */
uint8_t peek(uint64_t address)
{
    return *(volatile uint8_t *)address;
}

void poke(uint64_t address, uint8_t value)
{
    *(volatile uint8_t *)address = value;
}

uint64_t where(const void *argument)
{
    return (uint64_t)argument;
}

/* ---- state ---- */

static int count;
static double *kept;

int counter(void)
{
    return ++count;
}

void *keep(size_t count)
{
    return kept = calloc(count, sizeof *kept);
}

void put(double *values, size_t index, double value)
{
    values[index] = value;
}

double get(const double *values, size_t index)
{
    return values[index];
}

int say(const char *text)
{
    return printf("%s\n", text);
}

long read_file(const char *path, char *into, size_t size)
{
    FILE *file = fopen(path, "rb");

    if (!file)
        return -errno;
    long count = (long)fread(into, 1, size, file);
    fclose(file);
    return count;
}

/* ---- the end ---- */

void leave(int code)
{
    exit(code);
}

void give_up(void)
{
    puts("I give up");
    abort();
}

void for_ever(void)
{
    for (;;)
        __asm__ volatile("");
}

int nap(int milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};

    return nanosleep(&time, NULL);
}

int call_back(int (*function)(int), int value)
{
    return function ? function(value) : value;
}

int variadic(int count, ...)
{
    __builtin_va_list list;
    int sum = 0;

    __builtin_va_start(list, count);
    while (count--)
        sum += __builtin_va_arg(list, int);
    __builtin_va_end(list);
    return sum;
}

/* ---- arguments that are the same bytes, or lie where they have to ---- */

void write_both(uint8_t *first, uint8_t *second)
{
    first[0] = 1;
    second[1] = 2;
}

int read_what_was_written(uint8_t *to, const uint8_t *from)
{
    to[0] = 77;
    return from[0];
}

uint64_t where_after_one(int a, const void *bytes)
{
    (void)a;
    return (uint64_t)bytes;
}

struct line {
    _Alignas(64) double values[8];
};

/* Whether what the caller has for the result lies as its type says: as AVX's instructions want it. */
struct line aligned_result(double value)
{
    struct line line;
    uint64_t frame = (uint64_t)&line;

    for (int i = 0; i < 8; i++)
        line.values[i] = frame % 64 ? -1 : value;
    return line;
}

uint64_t where_is_line(const struct line *line)
{
    return (uint64_t)line;
}

struct record {
    int Offset;
    int P;
};

int sum_of_record(const struct record *record)
{
    return record->Offset + record->P;
}

int method(int self, int timeout)
{
    return self + timeout;
}

struct huge {
    char bytes[40000];
};

int last_of(struct huge huge)
{
    return huge.bytes[sizeof huge.bytes - 1];
}

union either {
    double number;
    int32_t halves[2];
};

void halve(union either *either)
{
    either->halves[0]++;
    either->halves[1] = either->halves[0];
}

struct __attribute__((packed)) packed {
    char letter;
    union either either;
};

void next_packed(struct packed *packed)
{
    packed->letter++;
}

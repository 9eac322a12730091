/* SPDX-License-Identifier: Apache-2.0
 * A library that keeps things: handles, variables, texts; for tests/kvm/test_sandbox_inside.py and others. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tally {
    double sum;
    int count;
    struct tally *next;
};

/* ---- handles ---- */

struct tally *tally_new(double sum)
{
    struct tally *tally = calloc(1, sizeof *tally);

    tally->sum = sum;
    return tally;
}

void tally_free(struct tally *tally)
{
    free(tally);
}

void tally_add(struct tally *tally, double value)
{
    tally->sum += value;
    tally->count++;
}

struct tally tally_read(const struct tally *tally)
{
    return *tally;
}

double sum_of(struct tally tally)
{
    return tally.sum + (tally.next ? tally.next->sum : 0);
}

void chain(struct tally *tally)
{
    tally->next = tally_new(5);
}

uint64_t as_number(uint64_t address)
{
    return address;
}

const void *constant(void)
{
    static const char text[] = "cannot be written";

    return text;
}

void crash(void)
{
    abort();
}

/* ---- texts within what a call is given ---- */

const char *find(const char *text, char letter)
{
    return strchr(text, letter);
}

char *skip(char *text, size_t count)
{
    return text + count;
}

const char *second(const char *first, const char *other)
{
    (void)first;
    return other;
}

/* ---- arrays of texts ---- */

/* Writes them, one after the other, with commas between. */
size_t join(int count, const char *const *texts, char *into, size_t room)
{
    size_t used = 0;

    into[0] = 0;
    for (int i = 0; i < count; i++)
        used += (size_t)snprintf(into + used, room - used, "%s%s", i ? "," : "", texts[i] ? texts[i] : "NULL");
    return used;
}

int count_texts(char **texts)
{
    int count = 0;

    while (texts[count])
        count++;
    return count;
}

void raise_letters(char **texts)
{
    for (; *texts; texts++)
        for (char *c = *texts; *c; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
}

const char *last(const char **texts, const char *otherwise)
{
    const char *found = otherwise;

    while (*texts)
        found = *texts++;
    return found;
}

/* ---- variables ---- */

int level = 3;
const int fixed = 4;
double weights[2][3] = {{1, 2, 3}, {4, 5, 6}};
struct tally total = {.sum = 1.5, .count = 2};
struct tally *current = &total;
char title[8] = "first";
const char *motto = "as it is";
const char *nothing;
uint8_t bytes[4] = {1, 2, 3, 4};
int (*handler)(int);
long double wide = 1;
static int hidden = 1;
_Thread_local int of_a_thread;

int level_seen(void)
{
    return level + hidden + of_a_thread;
}

double total_seen(void)
{
    return current->sum;
}

double weight_seen(int row, int column)
{
    return weights[row][column];
}

int twice(int value)
{
    return 2 * value;
}

int handled(int value)
{
    return handler ? handler(value) : -1;
}

/* ---- what is printed ---- */

void say(const char *text)
{
    puts(text);
}

void complain(const char *text)
{
    fprintf(stderr, "%s\n", text);
}

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

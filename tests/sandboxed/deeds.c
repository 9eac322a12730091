/* SPDX-License-Identifier: Apache-2.0
 * What functions do that are called by many at once: they compute, remember, sleep, and end in all ways. */
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static int counted;
static int set_up;
static volatile uintptr_t nowhere = 8;

int add(int a, int b)
{
    return a + b;
}

int count(void)
{
    return ++counted;
}

/* Once for each machine. */
int set(int value)
{
    return set_up = value;
}

int setting(void)
{
    return set_up;
}

void fill(uint8_t *bytes, int length, int value)
{
    for (int i = 0; i < length; i++)
        bytes[i] = (uint8_t)value;
}

long sum(const uint8_t *bytes, int length)
{
    long total = 0;

    for (int i = 0; i < length; i++)
        total += bytes[i];
    return total;
}

void fill_and_crash(uint8_t *bytes, int length, int value)
{
    fill(bytes, length, value);
    *(volatile int *)nowhere = 1;
}

void fill_and_quit(uint8_t *bytes, int length, int value)
{
    fill(bytes, length, value);
    exit(value);
}

void fill_and_spin(uint8_t *bytes, int length, int value)
{
    fill(bytes, length, value);
    for (volatile int i = 0;; i++)
        ;
}

long sum_and_crash(const uint8_t *bytes, int length)
{
    *(volatile long *)nowhere = sum(bytes, length);
    return 0;
}

void crash(void)
{
    *(volatile int *)nowhere = 1;
}

void quit(int code)
{
    exit(code);
}

void spin(void)
{
    for (volatile int i = 0;; i++)
        ;
}

int nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    return nanosleep(&t, NULL);
}

int fill_and_nap(uint8_t *bytes, int length, int value, double seconds)
{
    fill(bytes, length, value);
    return nap(seconds);
}

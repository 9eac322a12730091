/* Functions that tests have as tasks. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void scale(int height, int width, uint8_t pixels[height][width], double by)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            pixels[y][x] = (uint8_t)(pixels[y][x] * by);
}

double mean(const uint8_t *pixels, size_t count)
{
    double sum = 0;

    for (size_t i = 0; i < count; i++)
        sum += pixels[i];
    return count ? sum / (double)count : 0;
}

/* Returns how many there are, which is not what a task wants of it. */
int halves(int n, const uint8_t in[n], float out[n])
{
    for (int i = 0; i < n; i++)
        out[i] = in[i] / 2.0f;
    return n;
}

void swap(int n, int32_t a[n], int32_t b[n])
{
    for (int i = 0; i < n; i++) {
        int32_t kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

void rgb(int n, const uint8_t pixels[n][3])
{
    (void)n, (void)pixels;
}

void crash(int n, uint8_t v[n])
{
    puts("about to crash");
    fflush(stdout);
    uint8_t *volatile nowhere = (uint8_t *)8;

    v[0] = *(volatile uint8_t *)nowhere;
}

void hang(int n)
{
    for (volatile int i = 0; i >= 0 || n; i = 0)
        ;
}

int overwrite(size_t n, const uint8_t v[n])
{
    ((uint8_t *)v)[0] = 99; /* a cast does not help it */
    return v[0];
}

int count(void)
{
    static int calls;

    return ++calls;
}

double add(size_t n, const double v[n])
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += v[i];
    return sum;
}

/* SPDX-License-Identifier: Apache-2.0
 * Functions that the bench calls: in a sandbox, by ctypes, in another process, as WebAssembly. */
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096
#define MOST_PAGES 1024

/* What a call costs alone. */
void empty(void)
{
}

/* Reads and writes every byte: a picture with more contrast. */
void contrast(uint8_t *pixels, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        unsigned more = pixels[i] * 5u >> 2;

        pixels[i] = (uint8_t)(more > 255 ? 255 : more);
    }
}

/* Writes to so many pages of its own. */
void dirty(uint32_t pages)
{
    static volatile uint8_t own[MOST_PAGES * PAGE];

    for (uint32_t i = 0; i < pages && i < MOST_PAGES; i++)
        own[(size_t)i * PAGE]++;
}

/* Computes, in registers only. */
uint64_t spin(uint64_t rounds)
{
    uint64_t state = rounds | 1;

    for (uint64_t i = 0; i < rounds; i++)
        state = state * 6364136223846793005u + 1442695040888963407u;
    return state;
}

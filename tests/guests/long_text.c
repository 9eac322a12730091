/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints texts of more than one doorbell takes, by both functions. */
#include "pf.h"

static char text[20001];

static void fill(const char *part, size_t bytes)
{
    for (size_t i = 0; i + bytes < sizeof text; i++)
        text[i] = part[i % bytes];
}

int main(void)
{
    fill("0123456789", 10);
    text[10000] = 0;
    pf_printf("<%s|%d>", text, 7);
    pf_log("--");
    text[0] = 'x';
    for (size_t i = 1; i < 9001; i++)
        text[i] = "é€"[(i - 1) % 5]; /* two bytes and three */
    text[9001] = 0;
    pf_log(text);
    pf_log("--");
    pf_printf("%s", text);
    pf_log("--");
    fill("a line\n", 7);
    text[7 * 1000] = 0;
    pf_log(text);
    pf_log("--");
    pf_printf("%9000s%.3f", "wide", 1.5);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits with the number at the end of its own name: "exit-1" with -1, "exit300" with 300. */
#include "pf.h"

int main(void)
{
    char name[PF_NAME_MAX];
    int number = 0, sign = 1;

    memcpy(name, (const void *)PF->name, sizeof name);
    for (const char *at = name; *at; at++)
        if (*at == '-')
            sign = -1;
        else if (*at >= '0' && *at <= '9')
            number = 10 * number + (*at - '0');
    return sign * number;
}

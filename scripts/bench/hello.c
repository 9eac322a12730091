/* SPDX-License-Identifier: Apache-2.0
 *
 * What `pageferry bench` starts and waits for: a program with a C library, linked statically. */
#include <stdio.h>

int main(void)
{
    puts("hello, world");
    return 0;
}

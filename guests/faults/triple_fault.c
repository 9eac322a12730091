/* SPDX-License-Identifier: Apache-2.0
 *
 * Loads an empty IDT, and then raises an exception that nothing is there for. Must stop with a triple fault in
 * ring 0. Ring 3 may not load an IDT: #GP. */
#include "pf.h"

int main(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty = { 0, 0 };

    __asm__ volatile("lidt %0" : : "m"(empty)); /* faults here */
    __asm__ volatile("ud2");
    return 1;
}

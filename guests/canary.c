/* SPDX-License-Identifier: Apache-2.0
 *
 * The canary: does what every guest may do, and nothing else. The monitor runs it before any other guest, with
 * a deadline, in each ring and with each doorbell: where it does not come back in time, guests cannot work. */
#include "pf.h"

typedef long long vector __attribute__((vector_size(16)));

__attribute__((target("sse2"))) int main(void)
{
    unsigned mxcsr = 0;
    unsigned short control = 0;

    /* The doorbell works also where the ring is emulated. */
    for (int i = 0; i < 24; i++)
        pf_log("");

    /* SSE: an emulated ring stops here. */
    vector sum = { 0, 0 }, one = { 1, 2 };

    /* And one that does not stop takes microseconds for each round, not nanoseconds. */
    for (int i = 0; i < 100000; i++)
        __asm__ volatile("paddq %1, %0" : "+x"(sum) : "x"(one));

    /* The control words are those after a reset: KVM sets them so, and the monitor relies on it. */
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
    return sum[0] == 100000 && sum[1] == 200000 && mxcsr == 0x1f80 && (control & 0x3f) == 0x3f ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The canary: does what every guest may do, and nothing else. The monitor runs it before any other guest, with
 * a deadline, in each ring and with each doorbell: where it does not come back in time, guests cannot work.
 *
 * The numbers of exits and rounds are known to vmm/host/canary.py, which takes the time. */
#include "pf.h"

#define EXITS 24      /* bare ones, to time an exit */
#define LOOPS 3       /* exits with a loop before each, to time its rounds: the quickest counts */
#define ROUNDS 1000   /* of such a loop: a millisecond or more where the ring is emulated, else nothing */
#define SSE_ROUNDS 100000

typedef long long vector __attribute__((vector_size(16)));

__attribute__((target("sse2"))) int main(void)
{
    unsigned mxcsr = 0;
    unsigned short control = 0;

    /* The doorbell works also where the ring is emulated, and so do these loops. */
    for (int i = 0; i < EXITS; i++)
        pf_log("");
    for (int i = 0; i < LOOPS; i++) {
        unsigned rounds = ROUNDS;
        __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(rounds) : : "cc");
        pf_log("");
    }

    /* SSE: an emulated ring stops here. */
    vector sum = { 0, 0 }, one = { 1, 2 };

    /* Long enough to time one round where the ring is native. */
    for (int i = 0; i < SSE_ROUNDS; i++)
        __asm__ volatile("paddq %1, %0" : "+x"(sum) : "x"(one));

    /* The control words are those after a reset: KVM sets them so, and the monitor relies on it. */
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
    return sum[0] == SSE_ROUNDS && sum[1] == 2 * SSE_ROUNDS && mxcsr == 0x1f80 && (control & 0x3f) == 0x3f ? 0 : 1;
}

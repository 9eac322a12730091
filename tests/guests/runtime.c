/* SPDX-License-Identifier: Apache-2.0
 *
 * Does what compilers call functions of their own for. */
#include "pf.h"

int main(void)
{
    unsigned __int128 product = (unsigned __int128)PF->window_gpa * PF->window_gpa;
    __int128 negative = -(__int128)(product + PF->self);

    pf_printf("bits %d", __builtin_popcountll(PF->window_gpa - PF->self / PF->self));
    pf_printf("quotient %lu", (uint64_t)(product / (PF->window_gpa / 16)));
    pf_printf("remainder %ld", (int64_t)(negative % 1000003));
    pf_printf("float %.1f", (double)product);
    return 0;
}

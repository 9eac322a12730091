/* SPDX-License-Identifier: Apache-2.0 */
/* Allocates and fills all that it can get, and says how many pages that was. */
#include "pf.h"

int main(void)
{
    uint64_t taken = 0;
    for (uint32_t pages = 512; pages;) {
        void *memory;
        if (pf_alloc(pages, &memory) != PF_OK) {
            pages /= 2;
            continue;
        }
        memset(memory, 1, pages * 4096ul);
        taken += pages;
    }
    pf_printf("pages %lu", taken);
    return 0;
}

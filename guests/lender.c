/* SPDX-License-Identifier: Apache-2.0
 *
 * Lends a buffer to the machine called "worker", which sorts what is in it, and has it back in the same place. Nothing
 * is copied on either way, and neither of the two can touch the buffer while it is the other's. */
#include "examples.h"

#define PAGES 2
#define NUMBERS WORK_NUMBERS(PAGES)
#define TAG 7 /* a word of one's own: it comes back with the answer */

int main(void)
{
    uint32_t worker = pf_peer("worker");
    struct work_result result;
    struct pf_answer about;
    pf_message returned;
    void *buffer;

    PF_CHECK(worker != PF_NO_PEER);
    PF_CHECK(pf_alloc(PAGES, &buffer) == PF_OK);
    uint64_t sum = work_fill(buffer, NUMBERS);

    PF_CHECK(pf_lend(worker, buffer, PAGES, TAG, 0) == PF_OK);
    /* Touching the buffer now would stop this machine. It is still the owner, and the only one who could take the
     * buffer back before it is returned (see supervisor.c). */
    PF_CHECK(pf_query(buffer, PAGES, &about) == PF_OK && about.owner == PF->self);

    PF_CHECK(example_receive(&returned, PF_OP_RETURN, worker, PF_FOREVER) == PF_OK);
    PF_CHECK(returned.status == PF_OK && returned.tag == TAG);
    PF_CHECK(pf_data(&returned) == buffer && returned.extents[0].pages == PAGES);

    memcpy(&result, returned.payload, sizeof result);
    PF_CHECK(result.count == NUMBERS && result.sum == sum);
    PF_CHECK(work_sorted(buffer, NUMBERS));
    pf_printf("lent %lu numbers to worker, and have them back sorted; their sum is %lu", result.count, result.sum);
    example_end(worker);
    return 0;
}

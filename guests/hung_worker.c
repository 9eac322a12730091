/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes a job of supervisor.c's, begins, and hangs: in a loop without an exit, in the middle of using the buffer. Here
 * the loop ends when it notices that something was reclaimed. One that touched the buffer once more, without looking at
 * its notices first, would be stopped with a fault: pages that were reclaimed are out of reach. */
#include "examples.h"

int main(void)
{
    struct pf_answer about;
    pf_message job;

    for (;;) {
        PF_CHECK(pf_receive(&job, PF_FOREVER) == PF_OK);
        if (!job.extent_count && !job.payload_length)
            return 0;
        if (example_lent(&job))
            break;
        pf_drop(&job);
    }
    uint64_t pages = job.extents[0].pages;
    memset(pf_data(&job), 0xff, 64); /* it has made a mess of it by then */

    while (PF->reclaim_notices == 0) /* the monitor counts these in memory: looking costs no exit */
        ;
    PF_CHECK(pf_query(pf_data(&job), pages, &about) == PF_OK);
    PF_CHECK(about.hold == PF_HOLD_REVOKED && about.pages == pages);
    PF_CHECK(pf_reply(&job, "too late", 8) == PF_E_RECLAIMED);

    /* The place is kept empty until we say that we know: no other message can have landed there meanwhile. */
    PF_CHECK(pf_release(pf_data(&job), pages) == PF_OK);
    pf_printf("was too late: the job has been taken back");
    return 0;
}

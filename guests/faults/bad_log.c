/* SPDX-License-Identifier: Apache-2.0
 *
 * Logs text that is not in private memory, or more than may be logged at once. Must be answered PF_E_ADDRESS, in
 * bell_status, and print nothing.
 * Wants a page from the host, and gives it back when every refusal was as it must be. */
#include "pf.h"

static int log(uint64_t gpa, uint32_t length)
{
    PF->log_gpa = gpa;
    PF->log_length = length;
    pf_ring(PF_BELL_LOG);
    return PF->bell_status;
}

int main(void)
{
    pf_message page;

    PF_CHECK(pf_receive(&page, PF_FOREVER) == PF_OK);
    uint64_t end = PF->stack_gpa + PF->stack_bytes; /* of private memory */

    PF_CHECK(log(page.extents[0].gpa, 1) == PF_E_ADDRESS);
    PF_CHECK(log(end, 1) == PF_E_ADDRESS);
    PF_CHECK(log(end - 1, 2) == PF_E_ADDRESS);
    PF_CHECK(log(PF_DOORBELL_GPA, 4) == PF_E_ADDRESS);
    PF_CHECK(log(~0ull, 1) == PF_E_ADDRESS);
    PF_CHECK(log(~0ull - 2, 8) == PF_E_ADDRESS);
    PF_CHECK(log(PF_IMAGE_GPA, PF_LOG_MAX + 1) == PF_E_ADDRESS);
    PF_CHECK(log(PF_IMAGE_GPA, 0xffffffff) == PF_E_ADDRESS);
    PF_CHECK(*(char *)pf_data(&page) == 'a');
    return pf_reply(&page, "intact", 7);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker for hire, by lender.c, gather.c and supervisor.c. It borrows a buffer of numbers, sorts them in place, and
 * returns the buffer, with the result as the payload; the tag says which job it was. An empty message ends it. */
#include "examples.h"

static void sort(uint32_t *numbers, uint64_t count)
{
    for (uint64_t gap = count / 2; gap; gap /= 2)
        for (uint64_t i = gap; i < count; i++) {
            uint32_t number = numbers[i];
            uint64_t at = i;
            for (; at >= gap && numbers[at - gap] > number; at -= gap)
                numbers[at] = numbers[at - gap];
            numbers[at] = number;
        }
}

static struct work_result work(const pf_message *job)
{
    uint32_t *numbers = pf_data(job);
    struct work_result result = { .count = job->length / sizeof *numbers }; /* within its one extent */

    sort(numbers, result.count);
    for (uint64_t i = 0; i < result.count; i++)
        result.sum += numbers[i];
    return result;
}

/* pf_reply() takes the tag from the job, and returns pages that were lent. What can go wrong then is not an error of
 * ours: the owner may have no room for the answer at the moment, may have lost patience, or its life. */
static void answer(const pf_message *job, const struct work_result *result)
{
    int status;

    while ((status = pf_reply(job, result, sizeof *result)) == PF_E_QUEUE_FULL)
        if (pf_wait_room_only(job->sender, PF_FOREVER) != PF_OK)
            break;
    if (status != PF_OK) /* let go of the place, so that others can have it */
        pf_drop(job);
}

int main(void)
{
    pf_message job;

    while (pf_receive(&job, PF_FOREVER) == PF_OK && (job.extent_count || job.payload_length)) {
        if (!example_lent(&job)) { /* sent, or to be read only, or in parts: not what was agreed on */
            pf_drop(&job);
            continue;
        }
        struct work_result result = work(&job);
        answer(&job, &result);
    }
    return 0;
}

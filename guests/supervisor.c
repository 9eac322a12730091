/* SPDX-License-Identifier: Apache-2.0
 *
 * Lends a job to one worker after the other until one has done it in time. From one that is late (hung_worker.c) the
 * buffer is reclaimed, whatever that one is doing: neither its consent nor its life is needed. */
#include "examples.h"

#define PAGES 1
#define NUMBERS WORK_NUMBERS(PAGES)
#define LIMIT_MS 400

/* Waits for what becomes of a job; drops whatever else comes. */
static int outcome(const struct pf_peer *worker, pf_message *answer, uint64_t timeout_us)
{
    int status;

    while ((status = pf_receive(answer, timeout_us)) == PF_OK) {
        if ((answer->operation == PF_OP_RETURN && answer->sender == worker->id) || answer->operation == PF_OP_UNDELIVERED)
            break;
        if (answer->operation != PF_OP_RETURN)
            pf_drop(answer);
    }
    return status;
}

/* Whether a worker has done the job in time. In any case the buffer is ours when this returns. */
static bool done_by(const struct pf_peer *worker, void *buffer, uint64_t job, pf_message *answer)
{
    int status = pf_lend(worker->id, buffer, PAGES, job, 0);

    if (status == PF_OK)
        status = outcome(worker, answer, LIMIT_MS * 1000);
    if (status == PF_E_TIMEOUT) {
        status = pf_reclaim(buffer, PAGES);
        if (status == PF_OK) {
            pf_printf("%s has not answered within %u ms: reclaimed", worker->name, LIMIT_MS);
            return false;
        }
        PF_CHECK(status == PF_E_NOT_LENT); /* it was returned in this very moment */
        status = outcome(worker, answer, 0);
    }
    if (status != PF_OK) /* it has stopped, or has no room, and could not be lent anything */
        return false;
    return answer->operation == PF_OP_RETURN && answer->status == PF_OK && answer->tag == job; /* and not PF_E_DEAD */
}

int main(void)
{
    struct pf_peer workers[EXAMPLE_PEERS];
    uint32_t count = example_peers(workers), next = 0;
    const struct pf_peer *worker;
    struct work_result result;
    pf_message answer;
    void *buffer;
    uint64_t sum;

    PF_CHECK(pf_alloc(PAGES, &buffer) == PF_OK);
    do {
        PF_CHECK(next < count); /* or nobody is left to ask */
        worker = &workers[next++];
        sum = work_fill(buffer, NUMBERS); /* anew each time: who knows what the last one did to it */
    } while (!done_by(worker, buffer, next, &answer));

    memcpy(&result, answer.payload, sizeof result);
    PF_CHECK(result.sum == sum && work_sorted(buffer, NUMBERS));
    pf_printf("%s has done it: %lu numbers, their sum is %lu", worker->name, result.count, result.sum);
    for (uint32_t i = 0; i < count; i++)
        example_end(workers[i].id);
    return 0;
}

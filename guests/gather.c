/* SPDX-License-Identifier: Apache-2.0
 *
 * Fans work out and gathers it: one buffer, cut into parts, each lent to one of the workers (worker.c); whoever
 * returns one is lent the next. Parts come back in any order, each to its own place; the tag says which one it is. */
#include "examples.h"

#define PARTS 8
#define PART_PAGES 1
#define PART_NUMBERS WORK_NUMBERS(PART_PAGES)

static uint32_t *numbers;
static uint64_t lent;

static void lend_next(uint32_t worker)
{
    if (lent == PARTS)
        return;
    PF_CHECK(pf_lend(worker, numbers + lent * PART_NUMBERS, PART_PAGES, lent, 0) == PF_OK);
    lent++;
}

/* Takes one part back, and returns its sum. */
static uint64_t gather(uint32_t *worker)
{
    struct work_result result;
    pf_message part;

    PF_CHECK(example_receive(&part, PF_OP_RETURN, PF_NO_PEER, PF_FOREVER) == PF_OK); /* of what was lent, then */
    PF_CHECK(part.status == PF_OK && part.tag < PARTS);
    PF_CHECK(pf_data(&part) == numbers + part.tag * PART_NUMBERS);
    PF_CHECK(work_sorted(pf_data(&part), PART_NUMBERS));
    memcpy(&result, part.payload, sizeof result);
    *worker = part.sender;
    return result.sum;
}

int main(void)
{
    struct pf_peer workers[EXAMPLE_PEERS];
    uint32_t count = example_peers(workers), worker;
    uint64_t sum = 0, expected;
    void *buffer;

    PF_CHECK(count > 0);
    PF_CHECK(pf_alloc(PARTS * PART_PAGES, &buffer) == PF_OK);
    numbers = buffer;
    expected = work_fill(numbers, PARTS * PART_NUMBERS);

    for (uint32_t i = 0; i < count; i++)
        lend_next(workers[i].id);
    for (uint32_t parts = 0; parts < PARTS; parts++) {
        sum += gather(&worker);
        lend_next(worker);
    }
    PF_CHECK(sum == expected);
    for (uint32_t i = 0; i < count; i++)
        example_end(workers[i].id);
    pf_printf("%u parts, sorted by %u workers; the sum of all is %lu", PARTS, count, sum);
    return 0;
}

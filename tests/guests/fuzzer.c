/* SPDX-License-Identifier: Apache-2.0
 *
 * Puts what the test says into the control structure, sense or nonsense, and rings: see tests/kvm/test_fuzz.py.
 *
 * Orders come by the desk and a notice, since the receive ring is one of the things to play with. It touches no page of
 * its window, and executes nothing but this. */
#include "pf.h"

#define STEPS_MAX 16
#define STATUSES_MAX (STEPS_MAX * PF_TX_ENTRIES)

enum set { /* what a step sets as it says; else tx_head covers its descriptors, and the rest stays */
    SET_TX_HEAD = 1,
    SET_RX_TAIL = 2,
    TAKE_ALL = 4,
    BY_REGISTERS = 8, /* a hypercall with rbx, rcx and rdx, where that is how to ring */
};

struct step {
    uint32_t bell, set;
    uint32_t first, descriptors; /* of the desk's, into the ring */
    uint32_t tx_head, rx_tail;
    uint32_t wait_for, wait_peer, notices_seen, log_length;
    uint64_t wait_timeout_us, log_gpa;
    uint64_t rbx, rcx, rdx;
    int64_t rax;                /* the answers */
    int32_t bell_status;
    uint32_t answered;          /* descriptors */
};

struct desk {
    uint32_t order, done;       /* numbers: there is something to do as long as they differ */
    uint32_t steps, statuses;
    struct step step[STEPS_MAX];
    int32_t status[STATUSES_MAX];
    pf_message descriptors[PF_TX_ENTRIES];
};

static volatile struct desk desk;

static int64_t hypercall(const volatile struct step *step)
{
    int64_t result;

    if (PF->doorbell == PF_DOORBELL_VMCALL)
        __asm__ volatile("vmcall" : "=a"(result)
                         : "a"((uint64_t)PF_HYPERCALL), "b"(step->rbx), "c"(step->rcx), "d"(step->rdx) : "memory");
    else
        __asm__ volatile("vmmcall" : "=a"(result)
                         : "a"((uint64_t)PF_HYPERCALL), "b"(step->rbx), "c"(step->rcx), "d"(step->rdx) : "memory");
    return result;
}

static void take(volatile struct step *step)
{
    uint32_t tail = PF->tx_tail;

    for (uint32_t i = 0; i < step->descriptors; i++)
        memcpy((void *)&PF->tx[(tail + i) % PF_TX_ENTRIES], (const void *)&desk.descriptors[step->first + i],
               sizeof(pf_message));
    PF->tx_head = step->set & SET_TX_HEAD ? step->tx_head : tail + step->descriptors;
    if (step->set & SET_RX_TAIL)
        PF->rx_tail = step->rx_tail;
    if (step->set & TAKE_ALL)
        PF->rx_tail = PF->rx_head;
    PF->wait_for = step->wait_for;
    PF->wait_peer = step->wait_peer;
    PF->notices_seen = step->notices_seen;
    PF->wait_timeout_us = step->wait_timeout_us;
    PF->log_gpa = step->log_gpa;
    PF->log_length = step->log_length;
    PF->exit_code = 0;
    if (step->set & BY_REGISTERS && PF->doorbell >= PF_DOORBELL_VMCALL)
        step->rax = hypercall(step);
    else
        pf_ring(step->bell);
    step->bell_status = PF->bell_status;
    step->answered = PF->tx_tail - tail;
    for (uint32_t i = 0; i < step->answered; i++)
        desk.status[desk.statuses++] = PF->tx[(tail + i) % PF_TX_ENTRIES].status;
}

int main(void)
{
    uint64_t where = (uintptr_t)&desk;

    PF_CHECK(pf_send_inline(PF_PEER_HOST, &where, sizeof where, 0) == PF_OK);
    for (;;) {
        uint32_t seen = PF->notice_count;

        while (desk.done != desk.order) {
            desk.statuses = 0;
            for (uint32_t i = 0; i < desk.steps; i++)
                take(&desk.step[i]);
            desk.done = desk.order;
        }
        PF->wait_for = PF_WAIT_NOTICE;
        PF->notices_seen = seen;
        PF->wait_timeout_us = PF_FOREVER;
        pf_ring(PF_BELL_WAIT);
    }
}

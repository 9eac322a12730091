/* SPDX-License-Identifier: Apache-2.0
 * A library that knows how calls are made, and cheats: `tag` is that of the call that is under way. */
#include "pf.h"

#include <time.h>
#include <unistd.h>

#define HOST PF_PEER_HOST

static uint8_t *remembered;

static void answer(uint64_t tag, uint64_t value)
{
    struct pf_result result = {.rax = value};

    pf_send_inline(HOST, &result, sizeof result, tag);
}

int honest(int value)
{
    return value;
}

void answers_twice(uint64_t tag)
{
    answer(tag, 666);
    answer(tag, 666);
}

void answers_ahead(uint64_t tag)
{
    for (uint64_t next = tag + 1; next < tag + 4; next++)
        answer(next, 666);
}

void answers_wrongly(uint64_t tag)
{
    pf_message m;

    answer(tag + 100, 666);
    pf_send_inline(HOST, "short", 5, tag);
    pf_receive(&m, PF_FOREVER);
}

void answers_and_runs_on(uint64_t tag)
{
    answer(tag, 666);
    for (volatile int i = 0;; i++)
        ;
}

void answers_and_sleeps(uint64_t tag)
{
    struct timespec t = {1000, 0};

    answer(tag, 666);
    nanosleep(&t, NULL);
}

/* Answers by its own words, and keeps what it was given. */
void keeps(uint8_t *bytes, uint64_t tag)
{
    pf_message m;

    bytes[0] = 1;
    answer(tag, 666);
    pf_receive(&m, PF_FOREVER);
}

/* Answers by its own words, and goes on when it is woken. */
void lurks(uint8_t *bytes, uint64_t tag)
{
    pf_message m;

    answer(tag, 666);
    pf_wait(PF_FOREVER);
    bytes[0] += 1;
    pf_receive(&m, PF_FOREVER);
}

/* Answers by its own words, and leaves the message that it gets about a page. */
void leaves_a_message(uint64_t tag)
{
    void *page;

    pf_alloc(1, &page);
    answer(tag, 666);
    pf_lend(HOST, page, 1, 7, 0);
    pause();
}

void never_answers(uint8_t *bytes)
{
    pf_message m;

    bytes[0] = 1;
    pf_receive(&m, PF_FOREVER);
}

int gives_back(uint8_t *bytes, int pages)
{
    return pf_return(HOST, bytes, (uint64_t)pages, 0);
}

/* Whatever else can be done to pages that are lent: returns how many of these the monitor did. */
int deals_with(uint8_t *bytes, int pages)
{
    uint64_t n = (uint64_t)pages;
    int done = 0;

    done += pf_send(HOST, bytes, n, n * PF_PAGE_SIZE, 1) == PF_OK;
    done += pf_lend(HOST, bytes, n, 1, 0) == PF_OK;
    done += pf_share(HOST, bytes, n, 1, 0) == PF_OK;
    done += pf_exchange(HOST, bytes, n, n * PF_PAGE_SIZE, 1) == PF_OK;
    done += pf_reclaim(bytes, n) == PF_OK;
    done += pf_release(bytes, n) == PF_OK;
    return done;
}

void remembers(uint8_t *bytes)
{
    remembered = bytes;
}

int looks(void)
{
    return *(volatile uint8_t *)remembered;
}

int looks_at(uint8_t *bytes)
{
    return *(volatile uint8_t *)bytes;
}

int reads(const uint8_t *bytes)
{
    return *(volatile const uint8_t *)bytes;
}

void writes_to_what_it_reads(const uint8_t *bytes)
{
    *(volatile uint8_t *)bytes = 1;
}

int reads_both(const uint8_t *one, const uint8_t *other)
{
    return reads(one) + reads(other);
}

void fills_both(uint8_t *one, uint8_t *other, uint64_t n, int value)
{
    memset(one, value, n);
    memset(other, value, n);
}

int floods(int messages)
{
    int sent = 0;

    for (int i = 0; i < messages; i++)
        sent += pf_send_inline(HOST, "x", 1, 7) == PF_OK;
    return sent;
}

void floods_and_stays(void)
{
    floods(5000);
    for (volatile int i = 0;; i++)
        ;
}

/* As many at a time as there may be. */
void floods_by_batches_and_stays(void)
{
    pf_message m = {.operation = PF_OP_SEND, .receiver = HOST, .payload_length = 1};

    for (;;) {
        for (int i = 0; i < PF_TX_ENTRIES; i++)
            pf_post(&m);
        pf_flush();
    }
}

#define EACH(DO) DO(a) DO(b) DO(c) DO(d) DO(e) DO(f) DO(g) DO(h) DO(i) DO(j)
#define READ(x) const uint8_t *read_##x,
#define WRITTEN(x) , uint8_t *written_##x
#define COPY(x) written_##x[0] = read_##x[0];

/* Twenty arrays: more than one message returns. It takes its time. */
int copies_firsts(EACH(READ) int milliseconds EACH(WRITTEN))
{
    struct timespec t = {0, milliseconds * 1000000L};

    EACH(COPY)
    nanosleep(&t, NULL);
    return milliseconds;
}

/* Sends, lends or shares pages of its own, as often; returns how many went. */
int gives_pages(int how, int times)
{
    int done = 0;

    for (int i = 0; i < times; i++) {
        void *page;

        if (pf_alloc(1, &page) != PF_OK)
            break;
        *(volatile uint8_t *)page = 66;
        int status = how == 0   ? pf_send(HOST, page, 1, PF_PAGE_SIZE, 7)
                     : how == 1 ? pf_lend(HOST, page, 1, 7, 0)
                                : pf_share(HOST, page, 1, 7, 0);
        done += status == PF_OK;
    }
    return done;
}

int storms(int bells)
{
    for (int i = 0; bells < 0 || i < bells; i++)
        pf_ring(i % 4 < 2 ? PF_BELL_TRANSMIT : 99);
    return 1;
}

void spoils_the_control_structure(int value)
{
    uint8_t *bytes = (uint8_t *)PF_CONTROL_GPA;

    for (size_t i = 0; i < sizeof(struct pf_control); i++)
        ((volatile uint8_t *)bytes)[i] = (uint8_t)value;
}

void answers_without_its_data(uint8_t *bytes, uint64_t tag)
{
    pf_message m;

    bytes[0] = 9;
    answer(tag, 666); /* and nothing of what was copied */
    pf_receive(&m, PF_FOREVER);
}

/* ---- The memory that copies lie in ---- */

void fills(uint8_t *bytes, int length, int value)
{
    for (int i = 0; i < length; i++)
        bytes[i] = (uint8_t)value;
}

/* How many bytes of the window's first `length` are not zeros: whoever may look there. */
long finds(uint64_t address, long length)
{
    long found = 0;

    for (long i = 0; i < length; i++)
        found += ((volatile uint8_t *)address)[i] != 0;
    return found;
}

void pokes(uint64_t address, long length, int value)
{
    for (long i = 0; i < length; i++)
        ((volatile uint8_t *)address)[i] = (uint8_t)value;
}

uint64_t where(const uint8_t *bytes)
{
    return (uint64_t)bytes;
}

/* Gives back a page that it was to keep, keeps one that it was to give back, and answers itself. */
void swaps(uint64_t kept, uint8_t *bytes, uint64_t tag)
{
    pf_message m;

    pf_return(HOST, (void *)kept, 1, 0);
    pf_return(HOST, bytes + PF_PAGE_SIZE, 2, 0);
    answer(tag, 666);
    pf_receive(&m, PF_FOREVER);
}

int gives_back_what_it_keeps(uint64_t kept, int pages)
{
    return pf_return(HOST, (void *)kept, (uint64_t)pages, 0);
}

/* ---- What lies beyond an array ---- */

long finds_beyond(const uint8_t *bytes, long from, long to)
{
    return finds((uint64_t)bytes + (uint64_t)from, to - from);
}

void pokes_beyond(uint8_t *bytes, long from, long to, int value)
{
    pokes((uint64_t)bytes + (uint64_t)from, to - from, value);
}

void pokes_beyond_const(const uint8_t *bytes, long from, long to, int value)
{
    pokes((uint64_t)bytes + (uint64_t)from, to - from, value);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Does everything that may be done with pages, at random, with all its peers, and dies at random: see
 * tests/kvm/test_stress.py, whose host does the same.
 *
 * It keeps a book of its own of what each page of its window is, and what is written there. A page's content goes with
 * its message as a number, so that who gets it notices if it is another page's, an old one, or only half of it. */
#include "pf.h"

#define WORDS (PF_PAGE_SIZE / sizeof(uint64_t))
#define SPREAD 0x9e3779b97f4a7c15
#define WINDOW_PAGES 512
#define USED 200              /* pages from below, where small extents are placed, hardly ever more */
#define MOST 8                /* pages of one message */
#define START 0x7374617274    /* "start": the tag of the host's first message */
#define STOP 1                /* the host's notice */
#define DELIBERATE 0x64656c69 /* progress_done before an access that is not allowed */
#define SUICIDE 1             /* exit codes */
#define STOPPED 0

enum kind { GIFT = 1, LOAN = 2, BACK = 3 };

struct note { /* the payload */
    uint32_t kind, loan, count;
    uint32_t values[MOST];
};

struct start {
    uint64_t seed;
    uint32_t lives; /* it dies once in so many acts; 0: never */
};

struct place {
    uint8_t hold;
    bool writable;  /* LENT: so to the borrower */
    bool unknown;   /* content that a borrower may have left half written */
    uint32_t peer;  /* LENT: to; BORROWED and VIEWED: of */
    uint32_t loan;  /* which one, as the lender counts */
    uint32_t value; /* of the content; 0: zeros */
};

static struct place book[WINDOW_PAGES];
static uint32_t reclaims; /* notices known */
static uint32_t loans;
static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16) % below;
}

/* ---- Content ---- */

static volatile uint64_t *page_at(uint32_t page)
{
    return (volatile uint64_t *)(PF->window_gpa + (uint64_t)page * PF_PAGE_SIZE);
}

static uint32_t page_of(uint64_t gpa)
{
    return (uint32_t)((gpa - PF->window_gpa) / PF_PAGE_SIZE);
}

static void wrong(uint32_t page, uint32_t word, const char *what)
{
    pf_printf("page %u word %u: %s: value %x, found %lx\n", page, word, what, book[page].value, page_at(page)[word]);
    pf_panic(what);
}

/* A word that shows by itself that it was written as a whole. */
static uint64_t sealed(uint32_t value)
{
    return (uint64_t)value << 32 | (uint32_t)(value * 0x9e3779b1u + 1);
}

/* Every eighth word says whose page this is; the word after it is for those who share it, each with its own. */
static void check(uint32_t page)
{
    volatile uint64_t *words = page_at(page);
    uint32_t value = book[page].value;

    for (uint32_t i = 0; i < WORDS; i += 8) {
        uint64_t shared = words[i + 1];

        if (words[i] != (value ? value * SPREAD + i : 0))
            wrong(page, i, "foreign content");
        if (shared && shared != sealed((uint32_t)(shared >> 32)))
            wrong(page, i + 1, "torn content");
    }
}

static void check_zero(uint32_t page)
{
    for (uint32_t i = 0; i < WORDS; i++)
        if (page_at(page)[i])
            wrong(page, i, "not zeroed");
}

static void stamp(uint32_t page)
{
    static uint32_t count;
    volatile uint64_t *words = page_at(page);
    uint32_t value = PF->self << 20 | (count++ & 0xfffff);

    for (uint32_t i = 0; i < WORDS; i += 8) {
        words[i] = value * SPREAD + i;
        words[i + 1] = 0;
    }
    book[page].value = value;
    book[page].unknown = false;
}

static void sign(uint32_t page)
{
    page_at(page)[1 + 8 * (PF->self % (WORDS / 8))] = sealed(draw(1 << 30));
}

/* ---- The book ---- */

static bool readable(uint32_t page)
{
    uint32_t hold = book[page].hold;

    return hold == PF_HOLD_OWNED || hold == PF_HOLD_SHARED || hold == PF_HOLD_BORROWED || hold == PF_HOLD_VIEWED;
}

static bool borrowed(uint32_t page)
{
    return book[page].hold == PF_HOLD_BORROWED || book[page].hold == PF_HOLD_VIEWED;
}

static void hold(uint32_t page, uint32_t count, uint32_t what)
{
    for (uint32_t i = page; i < page + count; i++)
        book[i].hold = (uint8_t)what;
}

/* Finds some adjacent pages that are one of `holds`, and that, if borrowed, came with one message. Returns how many. */
static uint32_t find(uint32_t holds, uint32_t most, uint32_t *page)
{
    uint32_t from = draw(USED), count = 1;

    for (uint32_t i = 0; i < USED; i++) {
        uint32_t at = (from + i) % USED;

        if (!(holds >> book[at].hold & 1))
            continue;
        *page = at;
        while (count < most && book[at + count].hold == book[at].hold
               && (!borrowed(at) || (book[at + count].peer == book[at].peer && book[at + count].loan == book[at].loan)))
            count++;
        return count;
    }
    return 0;
}

static uint32_t truth(uint32_t page)
{
    struct pf_answer answer;

    PF_CHECK(pf_query((void *)page_at(page), 1, &answer) == PF_OK && answer.pages == 1);
    PF_CHECK(answer.hold != PF_HOLD_OWNED || (answer.owner == PF->self && answer.borrower_count == 0));
    return answer.hold;
}

/* Lets go of a page that its owner may have reclaimed. If not, it is still there, unless it goes this very moment. */
static bool let_go_if_revoked(uint32_t page)
{
    uint32_t notices, now;

    do {
        notices = PF->reclaim_notices;
        now = truth(page);
    } while (notices != PF->reclaim_notices);
    if (now != PF_HOLD_REVOKED) {
        PF_CHECK(now == book[page].hold);
        return false;
    }
    PF_CHECK(pf_release((void *)page_at(page), 1) == PF_OK);
    book[page].hold = PF_HOLD_NONE;
    return true;
}

/* Looks at all that is borrowed if something has been reclaimed: what is touched afterwards is still there, almost. */
static void look_for_reclaimed(void)
{
    while (PF->reclaim_notices != reclaims) {
        reclaims = PF->reclaim_notices;
        for (uint32_t page = 0; page < WINDOW_PAGES; page++)
            if (borrowed(page))
                let_go_if_revoked(page);
    }
}

/* ---- Messages ---- */

static void add(pf_message *message, uint32_t page, uint32_t count)
{
    struct note *note = (struct note *)message->payload;

    message->extents[message->extent_count++] = (struct pf_extent){ .gpa = (uintptr_t)page_at(page), .pages = count };
    message->length += (uint64_t)count * PF_PAGE_SIZE;
    for (uint32_t i = page; i < page + count; i++)
        note->values[note->count++] = book[i].value;
}

/* A message with one or two extents of pages that are one of `holds`; false if there are none. */
static bool compose(pf_message *message, uint16_t operation, uint32_t kind, uint32_t holds)
{
    struct note *note = (struct note *)message->payload;
    uint32_t first, second, count = find(holds, 1 + draw(MOST / 2), &first), more = 0;

    if (!count)
        return false;
    memset(message, 0, sizeof *message);
    message->operation = operation;
    message->payload_length = sizeof *note;
    note->kind = kind;
    note->loan = kind == LOAN ? ++loans : 0;
    for (uint32_t i = first; i < first + count; i++)
        if (book[i].hold == PF_HOLD_OWNED && (book[i].unknown || !draw(3)))
            stamp(i);
    add(message, first, count);
    if (!draw(3) && !borrowed(first))
        more = find(1u << book[first].hold, MOST / 2, &second);
    if (more && (second >= first + count || second + more <= first)) {
        for (uint32_t i = second; i < second + more; i++)
            if (book[i].unknown)
                stamp(i);
        add(message, second, more);
    }
    return true;
}

static uint32_t any_peer(void)
{
    uint32_t peer = 0;

    for (int i = 0; i < 4; i++) {
        peer = PF->peers[draw(PF->peer_count)].id;
        if (pf_alive(peer))
            break;
    }
    return peer;
}

/* What became of a SEND, LEND, SHARE or EXCHANGE. */
static void account_for(const pf_message *message, int status)
{
    PF_CHECK(status == PF_OK || status == PF_E_QUEUE_FULL || status == PF_E_DEAD || status == PF_E_WINDOW_FULL
             || status == PF_E_QUOTA || status == PF_E_NO_MEMORY
             || (status == PF_E_REPEATED && message->operation == PF_OP_SHARE));
    for (uint32_t i = 0; status == PF_OK && i < message->extent_count; i++)
        for (uint32_t j = 0; j < message->extents[i].pages; j++) {
            uint32_t page = page_of(message->extents[i].gpa) + j;
            struct place *place = &book[page];

            switch (message->operation) {
            case PF_OP_SEND:
                place->hold = PF_HOLD_NONE;
                break;
            case PF_OP_EXCHANGE:
                check_zero(page);
                place->value = 0;
                break;
            case PF_OP_LEND:
                place->hold = PF_HOLD_LENT;
                place->writable = !(message->flags & PF_FLAG_READONLY);
                place->peer = message->receiver;
                place->loan = ((const struct note *)message->payload)->loan;
                break;
            case PF_OP_SHARE:
                place->hold = PF_HOLD_SHARED;
            }
        }
}

static void transfer(uint16_t operation)
{
    pf_message message;
    uint32_t kind = operation == PF_OP_LEND || operation == PF_OP_SHARE ? LOAN : GIFT;
    uint32_t holds = 1u << PF_HOLD_OWNED | (operation == PF_OP_SHARE) << PF_HOLD_SHARED;

    if (!compose(&message, operation, kind, holds))
        return;
    message.receiver = any_peer();
    if (kind == LOAN && draw(2))
        message.flags = PF_FLAG_READONLY;
    account_for(&message, pf_transmit(&message));
}

/* Several gifts with one doorbell. */
static void transfer_several(void)
{
    pf_message messages[3];
    uint32_t count = 0, first = PF->tx_tail;

    while (count < 3 && compose(&messages[count], PF_OP_SEND, GIFT, 1u << PF_HOLD_OWNED)) {
        messages[count].receiver = any_peer();
        PF_CHECK(pf_post(&messages[count]) == PF_OK);
        for (uint32_t i = 0; i < messages[count].extent_count; i++) /* not twice */
            hold(page_of(messages[count].extents[i].gpa), messages[count].extents[i].pages, PF_HOLD_SENT);
        count++;
    }
    if (!count)
        return;
    PF_CHECK(pf_flush() >= 0);
    for (uint32_t i = 0; i < count; i++) {
        int status = ((volatile pf_message *)&PF->tx[(first + i) % PF_TX_ENTRIES])->status;
        for (uint32_t j = 0; j < messages[i].extent_count; j++)
            hold(page_of(messages[i].extents[j].gpa), messages[i].extents[j].pages, PF_HOLD_OWNED);
        account_for(&messages[i], status);
    }
}

static void give_back(void)
{
    pf_message message;
    uint32_t page = 0;

    if (!compose(&message, PF_OP_RETURN, BACK, 1u << PF_HOLD_BORROWED | 1u << PF_HOLD_VIEWED))
        return;
    page = page_of(message.extents[0].gpa);
    message.receiver = book[page].peer;
    ((struct note *)message.payload)->loan = book[page].loan;
    int status = pf_transmit(&message);

    PF_CHECK(status == PF_OK || status == PF_E_QUEUE_FULL || status == PF_E_RECLAIMED);
    for (uint32_t i = page; i < page + message.extents[0].pages; i++)
        if (status == PF_OK)
            book[i].hold = PF_HOLD_NONE;
        else if (status == PF_E_RECLAIMED)
            let_go_if_revoked(i);
}

static void reclaim(void)
{
    uint32_t page, count = find(1u << PF_HOLD_LENT | 1u << PF_HOLD_SHARED, 4, &page);

    if (!count)
        return;
    int status = pf_reclaim((void *)page_at(page), count);

    PF_CHECK(status == PF_OK || status == PF_E_NOT_LENT); /* it has come back, and the message is still to be read */
    for (uint32_t i = page; status == PF_OK && i < page + count; i++) {
        book[i].unknown |= book[i].hold == PF_HOLD_LENT && book[i].writable;
        book[i].hold = PF_HOLD_OWNED;
        if (!book[i].unknown)
            check(i);
    }
}

/* ---- What comes ---- */

static void got(const pf_message *message, uint32_t page, uint32_t value)
{
    struct place *place = &book[page];

    PF_CHECK(!readable(page));
    *place = (struct place){ .hold = PF_HOLD_OWNED, .value = value };
    if (message->operation == PF_OP_LEND || message->operation == PF_OP_SHARE) {
        place->hold = message->flags & PF_FLAG_READONLY ? PF_HOLD_VIEWED : PF_HOLD_BORROWED;
        place->writable = message->operation == PF_OP_LEND && !(message->flags & PF_FLAG_READONLY);
        place->peer = message->sender;
        place->loan = ((const struct note *)message->payload)->loan;
        if (let_go_if_revoked(page))
            return;
    }
    check(page);
}

/* A page that was lent or shared comes back, or so it seems: it may have been reclaimed, and lent again, meanwhile. */
static void came_back(const pf_message *message, uint32_t page, uint32_t loan, uint32_t value)
{
    struct place *place = &book[page];

    if (place->hold == PF_HOLD_SHARED) {
        uint32_t now = truth(page);
        PF_CHECK(now == PF_HOLD_SHARED || now == PF_HOLD_OWNED);
        place->hold = (uint8_t)now;
        check(page);
        return;
    }
    bool died = message->operation == PF_OP_RETURN && message->status == PF_E_DEAD;

    if (place->hold != PF_HOLD_LENT || (died ? place->peer != message->sender : place->loan != loan))
        return;
    place->hold = PF_HOLD_OWNED;
    place->unknown = died && place->writable;
    PF_CHECK(truth(page) == PF_HOLD_OWNED);
    if (message->operation == PF_OP_RETURN && !died && place->writable)
        place->value = value;
    if (!place->unknown)
        check(page);
}

static void accept(const pf_message *message)
{
    const struct note *note = (const struct note *)message->payload;
    bool undelivered = message->operation == PF_OP_UNDELIVERED;
    uint32_t n = 0;

    PF_CHECK(message->status == (undelivered || !message->payload_length ? PF_E_DEAD : PF_OK));
    for (uint32_t i = 0; i < message->extent_count; i++)
        for (uint32_t j = 0; j < message->extents[i].pages; j++, n++) {
            uint32_t page = page_of(message->extents[i].gpa) + j, value = n < MOST ? note->values[n] : 0;

            if (message->operation == PF_OP_RETURN)
                came_back(message, page, note->loan, value);
            else if (undelivered && note->kind == LOAN)
                came_back(message, page, note->loan, value);
            else
                got(message, page, value);
        }
}

static void receive(uint64_t timeout_us)
{
    pf_message message;
    int status = pf_receive(&message, timeout_us);

    PF_CHECK(status == PF_OK || status == PF_E_TIMEOUT);
    look_for_reclaimed();
    if (status == PF_OK)
        accept(&message);
}

/* ---- Life ---- */

static void alloc(void)
{
    void *address;
    uint32_t count = 1 + draw(4);
    int status = pf_alloc(count, &address);

    PF_CHECK(status == PF_OK || status == PF_E_QUOTA || status == PF_E_NO_MEMORY);
    for (uint32_t i = 0; status == PF_OK && i < count; i++) {
        uint32_t page = page_of((uintptr_t)address) + i;
        PF_CHECK(!readable(page));
        book[page] = (struct place){ .hold = PF_HOLD_OWNED };
        check_zero(page);
    }
}

static void use(void)
{
    uint32_t page;

    look_for_reclaimed();
    if (find(1u << PF_HOLD_OWNED | 1u << PF_HOLD_SHARED | 1u << PF_HOLD_BORROWED | 1u << PF_HOLD_VIEWED, 1, &page)) {
        struct place *place = &book[page];

        if (!place->unknown)
            check(page);
        if (place->hold == PF_HOLD_OWNED || (place->hold == PF_HOLD_BORROWED && place->writable))
            stamp(page);
        else if (place->hold != PF_HOLD_VIEWED)
            sign(page);
    }
}

static void ask(void)
{
    uint32_t page = draw(WINDOW_PAGES), is = book[page].hold, now = truth(page);

    if (is == PF_HOLD_OWNED)
        PF_CHECK(now == PF_HOLD_OWNED);
    if (is == PF_HOLD_SHARED || is == PF_HOLD_LENT)
        PF_CHECK(now == is || now == PF_HOLD_OWNED);
    if (borrowed(page))
        PF_CHECK(now == is || now == PF_HOLD_REVOKED);
}

static void release(void)
{
    uint32_t page, count = find(1u << PF_HOLD_OWNED, 4, &page);

    if (count) {
        PF_CHECK(pf_release((void *)page_at(page), count) == PF_OK);
        hold(page, count, PF_HOLD_NONE);
    }
}

static void wait_a_moment(void)
{
    int status = pf_wait_room(any_peer(), draw(200));

    PF_CHECK(status == PF_OK || status == PF_PENDING || status == PF_E_DEAD || status == PF_E_TIMEOUT);
}

static void die(void)
{
    uint32_t page;

    if (draw(2))
        pf_exit(SUICIDE);
    PF->progress_done = DELIBERATE;
    if (draw(2) && find(1u << PF_HOLD_LENT, 1, &page))
        (void)*page_at(page); /* unless it has come back */
    (void)*page_at(WINDOW_PAGES - 1);
    pf_panic("could read a page that is not there");
}

static void act(void)
{
    static const uint16_t transfers[] = { PF_OP_SEND, PF_OP_SEND, PF_OP_LEND, PF_OP_LEND, PF_OP_SHARE, PF_OP_SHARE,
                                          PF_OP_EXCHANGE };
    uint32_t what = draw(30);

    if (what < 3)
        alloc();
    else if (what < 10)
        transfer(transfers[what - 3]);
    else if (what < 13)
        give_back();
    else if (what < 14)
        transfer_several();
    else if (what < 15)
        reclaim();
    else if (what < 16)
        release();
    else if (what < 17)
        ask();
    else if (what < 18)
        wait_a_moment();
    else if (what < 20)
        use();
    else
        receive(draw(2) ? 0 : draw(300));
}

int main(void)
{
    pf_message message;
    struct start start;

    do
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
    while (message.sender != PF_PEER_HOST || message.tag != START);
    memcpy(&start, message.payload, sizeof start);
    state = start.seed | 1;
    while (!(PF->notices & STOP)) {
        act();
        if (start.lives && !draw(start.lives))
            die();
    }
    return STOPPED;
}

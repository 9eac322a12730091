/* SPDX-License-Identifier: Apache-2.0
 *
 * The demo's first guest. It announces the user's file to b and sends it, by its pages; passes what comes back
 * on to the host; and at last gives the proof: it touches a page that it has sent, and is stopped. */
#include "demo.h"
#include "pf.h"

static uint32_t b;

static void announce_and_send(const pf_message *file)
{
    pf_printf("file of %lu bytes in %u pages at %p: announcing it to b, then sending it", file->length,
              file->extents[0].pages, pf_data(file));
    PF_CHECK(pf_send_inline(b, &file->length, sizeof file->length, DEMO_ANNOUNCE) == PF_OK);
    PF_CHECK(pf_send(b, pf_data(file), file->extents[0].pages, file->length, DEMO_FILE) == PF_OK);
}

static void pass_on(pf_message *result)
{
    pf_printf("the file is back, at %p: passing it on to the host", pf_data(result));
    result->receiver = PF_PEER_HOST;
    PF_CHECK(pf_transmit(result) == PF_OK);
}

/* The payload's first byte says how to touch the page: 'r' or 'w'. */
static void touch_after_sending(const pf_message *page)
{
    volatile char *first = pf_data(page);
    char how = (char)page->payload[0];

    PF_CHECK(pf_send(b, pf_data(page), page->extents[0].pages, page->length, DEMO_TOUCH) == PF_OK);
    pf_printf("sent the page at %p to b; touching it (%s)", pf_data(page), how == 'w' ? "write" : "read");
    if (how == 'w')
        *first = '!'; /* faults here */
    else
        (void)*first; /* faults here */
    pf_panic("touched a page after sending it, and nothing stopped me");
}

int main(void)
{
    pf_message message;

    b = pf_peer("b");
    for (;;) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        switch (message.tag) {
        case DEMO_FILE:
        case DEMO_TOUCH:
            if (message.sender != PF_PEER_HOST || !pf_owned(&message))
                pf_drop(&message);
            else if (message.tag == DEMO_FILE)
                announce_and_send(&message);
            else
                touch_after_sending(&message);
            break;
        case DEMO_RESULT:
            if (message.sender == b && pf_owned(&message))
                pass_on(&message);
            else
                pf_drop(&message);
            break;
        default: pf_drop(&message); /* a tag that is not the demo's */
        }
    }
}

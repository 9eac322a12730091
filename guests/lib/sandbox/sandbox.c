/* SPDX-License-Identifier: Apache-2.0
 * A program whose functions the host calls: it waits for calls, and answers each ("Calls" in pageferry.h). */
#include <stdio.h>

#include "pf.h"

/* What pf_enter_function() loads, and what it leaves. */
struct frame {
    uint64_t function;
    uint64_t general[PF_CALL_GENERAL];
    uint64_t vector[PF_CALL_VECTOR];
    uint64_t vectors;
    const uint64_t *stack;
    uint64_t words;
    struct pf_result result;
};

_Static_assert(offsetof(struct frame, general) == 8 && offsetof(struct frame, vector) == 56, "enter.S");
_Static_assert(offsetof(struct frame, vectors) == 120 && offsetof(struct frame, stack) == 128, "enter.S");
_Static_assert(offsetof(struct frame, words) == 136 && offsetof(struct frame, result) == 144, "enter.S");

void pf_enter_function(struct frame *frame);

#define STACK_WORDS 8193 /* 64 KiB, and one that makes their number even */

static _Alignas(16) pf_message call; /* as the data in its payload is to be */
static pf_message answer;

/* Enters the function that has been asked for; returns the bytes of the answer's payload. */
static size_t serve(void)
{
    static uint64_t words[PF_CALL_GENERAL + PF_CALL_VECTOR + STACK_WORDS];
    struct frame frame = {0};
    struct pf_call asked;
    const uint8_t *body = call.payload + sizeof asked;

    memcpy(&asked, call.payload, sizeof asked);
    PF_CHECK(asked.general <= PF_CALL_GENERAL && asked.vector <= PF_CALL_VECTOR && asked.stack <= STACK_WORDS);
    if (asked.flags & PF_CALL_SPILLED)
        memcpy(&body, call.payload + sizeof asked, sizeof body);
    size_t count = (size_t)asked.general + asked.vector + asked.stack;
    const uint8_t *data = body + count * sizeof *words;
    /* Copied, whatever their alignment: payloads have none. */
    memcpy(words, body, count * sizeof *words);
    for (uint32_t i = 0; i < asked.places; i++) {
        struct pf_place place;

        memcpy(&place, data + asked.data + i * sizeof place, sizeof place);
        PF_CHECK(place.word < count);
        words[place.word] = (uint64_t)data + place.offset;
    }
    frame.function = asked.function;
    memcpy(frame.general, words, asked.general * sizeof *words);
    memcpy(frame.vector, words + asked.general, asked.vector * sizeof *words);
    frame.vectors = asked.vector;
    frame.stack = words + asked.general + asked.vector;
    frame.words = asked.stack;
    pf_enter_function(&frame);
    PF_CHECK(asked.data <= PF_PAYLOAD_MAX - sizeof frame.result);
    memcpy(answer.payload, &frame.result, sizeof frame.result);
    memcpy(answer.payload + sizeof frame.result, data, asked.data);
    return sizeof frame.result + asked.data;
}

int main(void)
{
    uint32_t version = PF_CALL_VERSION;

    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* so that what is printed before a crash is not lost with it */
    answer.operation = PF_OP_SEND;
    answer.receiver = PF_PEER_HOST;
    answer.tag = PF_CALL_READY;
    answer.payload_length = sizeof version;
    memcpy(answer.payload, &version, sizeof version);
    for (;;) {
        if (pf_call(&answer, PF_FOREVER) != PF_OK)
            pf_panic("the host does not take the answer to a call");
        /* pf_call() has put the message that came into `answer`'s place. */
        memcpy(&call, &answer, sizeof call);
        PF_CHECK(call.payload_length >= sizeof(struct pf_call) && !call.extent_count);
        memset(&answer, 0, offsetof(pf_message, extents));
        answer.operation = PF_OP_SEND;
        answer.receiver = call.sender;
        answer.tag = call.tag;
        answer.payload_length = (uint16_t)serve();
        fflush(stdout);
    }
}

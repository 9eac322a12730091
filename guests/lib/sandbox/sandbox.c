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

#define EXTENTS 255  /* as a place can tell apart, and the data */
#define MESSAGES 63 /* whose pages go back by as many: one less than the transmit ring takes */
#define STACK_WORDS 8193 /* 64 KiB, and one that makes their number even */

/* What a call has brought. */
struct call {
    pf_message message; /* the last one, which asks */
    uint32_t count;
    uint32_t messages; /* before it */
    struct pf_extent extents[EXTENTS];
    uint32_t ends[MESSAGES]; /* of what each of them has brought */
};

static _Alignas(16) struct call call; /* as the data in its payload is to be */
static pf_message answer;

static void add_extents(const pf_message *message)
{
    PF_CHECK(call.count + message->extent_count <= EXTENTS);
    for (uint32_t i = 0; i < message->extent_count; i++)
        call.extents[call.count++] = message->extents[i];
}

/* Copies words, whatever their alignment: payloads have none. */
static const uint8_t *take(uint64_t *to, const uint8_t *from, size_t words)
{
    memcpy(to, from, words * sizeof *to);
    return from + words * sizeof *to;
}

/* Enters the function that has been asked for; returns the bytes of the answer's payload. */
static size_t serve(void)
{
    static uint64_t words[PF_CALL_GENERAL + PF_CALL_VECTOR + STACK_WORDS];
    struct frame frame = {0};
    struct pf_call asked;
    uint8_t *body = call.message.payload + sizeof asked;

    memcpy(&asked, call.message.payload, sizeof asked);
    PF_CHECK(asked.general <= PF_CALL_GENERAL && asked.vector <= PF_CALL_VECTOR && asked.stack <= STACK_WORDS);
    bool spilled = (asked.flags & PF_CALL_SPILLED) && call.count;
    if (spilled)
        body = (uint8_t *)call.extents[call.count - 1].gpa;
    size_t count = (size_t)asked.general + asked.vector + asked.stack;
    const uint8_t *places = take(words, body, count);
    uint8_t *data = (uint8_t *)places + asked.places * sizeof(struct pf_place);
    for (uint32_t i = 0; i < asked.places; i++) {
        struct pf_place place;

        memcpy(&place, places + i * sizeof place, sizeof place);
        uint64_t base = (uint64_t)data;
        if (place.extent != PF_CALL_DATA) {
            PF_CHECK(place.extent < call.count);
            base = call.extents[place.extent].gpa;
        }
        PF_CHECK(place.word < count);
        words[place.word] = base + place.offset;
    }
    frame.function = asked.function;
    memcpy(frame.general, words, asked.general * sizeof *words);
    memcpy(frame.vector, words + asked.general, asked.vector * sizeof *words);
    frame.vectors = asked.vector;
    frame.stack = words + asked.general + asked.vector;
    frame.words = asked.stack;
    pf_enter_function(&frame);
    memcpy(answer.payload, &frame.result, sizeof frame.result);
    if (spilled || asked.data > PF_PAYLOAD_MAX - sizeof frame.result)
        return sizeof frame.result;
    memcpy(answer.payload + sizeof frame.result, data, asked.data);
    return sizeof frame.result + asked.data;
}

/* Has a message give back extents first..end of the call's. */
static void give_back(pf_message *message, uint32_t first, uint32_t end)
{
    message->length = 0;
    message->extent_count = (uint16_t)(end - first);
    for (uint32_t i = first; i < end; i++) {
        message->extents[i - first] = call.extents[i];
        message->length += (uint64_t)call.extents[i].pages * PF_PAGE_SIZE;
    }
}

/* Writes the descriptor that answers: its pages go back with it, and those that came by other messages by others. */
static void reply(size_t bytes)
{
    uint32_t first = 0;

    answer.operation = call.count ? PF_OP_RETURN : PF_OP_SEND;
    answer.receiver = call.message.sender;
    answer.tag = call.message.tag;
    for (uint32_t i = 0; i < call.messages; i++) {
        pf_message before = answer;

        give_back(&before, first, call.ends[i]);
        first = call.ends[i];
        pf_post(&before);
    }
    answer.payload_length = (uint16_t)bytes;
    give_back(&answer, first, call.count);
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
        call.count = call.messages = 0;
        if (pf_call(&answer, PF_FOREVER) != PF_OK)
            pf_panic("the host does not take the answer to a call");
        /* pf_call() has put the message that came into `answer`'s place. */
        memcpy(&call.message, &answer, sizeof call.message);
        while (call.message.payload_length >= sizeof(struct pf_call) && call.message.payload[8] & PF_CALL_MORE) {
            PF_CHECK(call.messages < MESSAGES);
            add_extents(&call.message);
            call.ends[call.messages++] = call.count;
            PF_CHECK(pf_receive(&call.message, PF_FOREVER) == PF_OK);
        }
        add_extents(&call.message);
        PF_CHECK(call.message.payload_length >= sizeof(struct pf_call));
        memset(&answer, 0, offsetof(pf_message, extents));
        size_t bytes = serve();

        fflush(stdout);
        reply(bytes);
    }
}

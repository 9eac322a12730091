/* What the stages of the pipeline have in common. */
#include <pf.h>
#include <stdbool.h>
#include <stddef.h>

struct block {
    pf_message message;
    unsigned char *bytes; /* in pages that are this machine's, as long as it has not passed them on */
    size_t count;
};

/* Waits for a block, whose tag says how many bytes are in it. Returns false for the end: no pages. */
static bool next_block(struct block *block)
{
    pf_message *m = &block->message;

    PF_CHECK(pf_receive(m, PF_FOREVER) == PF_OK);
    if (!pf_owned(m))
        return false;
    PF_CHECK(m->extent_count == 1 && m->tag <= m->length);
    block->bytes = pf_data(m);
    block->count = m->tag;
    return true;
}

/* Sends a block's pages on, by moving them: from here on this machine cannot touch them. No queue is ever
 * full, as the host has few blocks, and waits until they are back. */
static void pass_on(struct block *block, uint32_t to)
{
    block->message.receiver = to;
    PF_CHECK(pf_transmit(&block->message) == PF_OK);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads the page that config_owner.c shares with it, twice, at the same address. Where its machine is called
 * "config_writer" it writes to the page, which it may only read, and is stopped for it. */
#include "examples.h"

int main(void)
{
    pf_message shared, changed;

    do
        PF_CHECK(example_receive(&shared, PF_OP_SHARE, PF_NO_PEER, PF_FOREVER) == PF_OK);
    while (shared.tag != CONFIG_SHARED || !(shared.flags & PF_FLAG_READONLY) || shared.extent_count != 1);

    volatile struct config *config = pf_data(&shared);
    uint64_t first = config->rate;

    if (strcmp((const char *)PF->name, "config_writer") == 0) {
        config->rate = 0; /* stopped here: the page is mapped without write access */
        pf_panic("wrote to a page that is read-only, and nothing stopped me");
    }
    PF_CHECK(pf_send_inline(shared.sender, "", 0, CONFIG_SEEN) == PF_OK);

    do
        PF_CHECK(example_receive(&changed, PF_OP_SEND, shared.sender, PF_FOREVER) == PF_OK);
    while (changed.tag != CONFIG_CHANGED);
    PF_CHECK(changed.extent_count == 0); /* no page came with it */
    PF_CHECK(config->version == 2);
    pf_printf("the rate was %lu, and is %lu in the same page", first, config->rate);

    /* An answer to what was shared, or lent, returns it. From here on the page is out of reach. */
    PF_CHECK(pf_reply(&shared, "", 0) == PF_OK);
    return 0;
}

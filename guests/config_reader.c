/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads the page that config_owner.c shares with it, twice, at the same address. Where its machine is called
 * "config_writer" it writes to the page, which it may only read, and is stopped for it. */
#include "examples.h"

int main(void)
{
    pf_message shared, changed;

    PF_CHECK(pf_receive(&shared, PF_FOREVER) == PF_OK);
    PF_CHECK(shared.operation == PF_OP_SHARE && shared.tag == CONFIG_SHARED);
    PF_CHECK(shared.flags & PF_FLAG_READONLY); /* told by the monitor, not by the sender */

    volatile struct config *config = pf_data(&shared);
    uint64_t first = config->rate;

    if (strcmp((const char *)PF->name, "config_writer") == 0) {
        config->rate = 0; /* stopped here: the page is mapped without write access */
        pf_panic("wrote to a page that is read-only, and nothing stopped me");
    }
    PF_CHECK(pf_send_inline(shared.sender, "", 0, CONFIG_SEEN) == PF_OK);

    PF_CHECK(pf_receive(&changed, PF_FOREVER) == PF_OK);
    PF_CHECK(changed.tag == CONFIG_CHANGED && changed.extent_count == 0); /* no page came with it */
    PF_CHECK(config->version == 2);
    pf_printf("the rate was %lu, and is %lu in the same page", first, config->rate);

    /* An answer to what was shared, or lent, returns it. From here on the page is out of reach. */
    PF_CHECK(pf_reply(&shared, "", 0) == PF_OK);
    return 0;
}

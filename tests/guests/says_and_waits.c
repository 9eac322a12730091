/* SPDX-License-Identifier: Apache-2.0
 *
 * Says that it is ready, and exits with the tag of the message that it gets. */
#include "pf.h"

int main(void)
{
    pf_message message;

    pf_log("ready");
    return pf_receive(&message, PF_FOREVER) == PF_OK ? (int)message.tag : 1;
}

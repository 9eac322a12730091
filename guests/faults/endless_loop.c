/* SPDX-License-Identifier: Apache-2.0
 *
 * Never comes back. Must be stopped by the time-out of the monitor's run, and hold up nobody until then. */
#include "pf.h"

int main(void)
{
    for (;;)
        ;
}

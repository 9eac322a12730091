/* SPDX-License-Identifier: Apache-2.0
 *
 * Logs a word and exits with 3. */
#include "pf.h"

int main(void)
{
    pf_log("hello");
    return 3;
}

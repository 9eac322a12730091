/* SPDX-License-Identifier: Apache-2.0
 *
 * Gives up, with a text that would colour the terminal and forge a line of the log.
 * Must stop with a panic that has the words and nothing of that. */
#include "pf.h"

int main(void)
{
    pf_panic("out of \x1b[31mcheese\nhost: all is well\r\x07");
}

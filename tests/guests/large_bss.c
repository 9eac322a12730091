/* SPDX-License-Identifier: Apache-2.0
 *
 * Needs more memory than machines have by default. */
char large[64 << 20];

int main(void)
{
    return large[12345];
}

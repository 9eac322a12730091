/* SPDX-License-Identifier: Apache-2.0
 *
 * Exits at once: what `pageferry bench` spawns and closes. */
int main(void)
{
    return 0;
}

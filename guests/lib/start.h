/* SPDX-License-Identifier: Apache-2.0
 * Between start.c and pf.c. */
#ifndef PF_START_H
#define PF_START_H

/* Stops the machine at once: no destructors. */
__attribute__((noreturn)) void pf_halt(int code);

#endif

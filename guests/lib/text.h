/* SPDX-License-Identifier: Apache-2.0
 * Between text.c and what prints by it. */
#ifndef PF_TEXT_H
#define PF_TEXT_H

#include "pf.h"

/* Prints what one doorbell takes of a text of `*bytes`, and says in `*bytes` how much that was. */
int pf_log_piece(const char *text, size_t *bytes);

#endif

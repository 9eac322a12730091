/* SPDX-License-Identifier: Apache-2.0
 * The tags of the demo's messages, between its two guests and the host (vmm/demo.py). */
#ifndef PF_DEMO_H
#define PF_DEMO_H

enum demo_tag {
    DEMO_FILE = 1,     /* host -> a -> b: the user's file */
    DEMO_ANNOUNCE = 2, /* a -> b: its length, inline, before the file itself */
    DEMO_RESULT = 3,   /* b -> a -> host: the file, changed in place, and the digest of what it was */
    DEMO_TOUCH = 4,    /* host -> a -> b -> host: a page that a touches after it has sent it */
    DEMO_END = 5,      /* host -> b: exit */
};

#endif

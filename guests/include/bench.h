/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two guests of `pageferry bench` and whoever measures them agree on: pageferry itself, and
 * scripts/bench/floor.c. */
#ifndef PF_BENCH_H
#define PF_BENCH_H

#include <stdint.h>

/* What bench_sender.c is to do, as the payload of a message from the host. One sample is one round: */
enum bench_kind {
    BENCH_INLINE = 1,   /* 64 bytes one way: until their receiver has taken them, and waits again */
    BENCH_PAGES = 2,    /* an extent one way: the same, and the receiver has read a word of it */
    BENCH_PINGPONG = 3, /* an extent there and back */
    BENCH_BATCH = 4,    /* `batch` one-page messages in one doorbell, one way */
    BENCH_LEND = 5,     /* an extent lent, and returned */
    BENCH_SHARE = 6,    /* an extent shared, read-only, and returned */
    BENCH_STREAM = 7,   /* `rounds` times 64 bytes, as fast as the queue takes them: one sample for all */
};

struct bench_command {
    uint32_t kind;   /* enum bench_kind */
    uint32_t peer;   /* bench_receiver.c */
    uint32_t rounds; /* at most BENCH_SAMPLES */
    uint32_t pages;  /* of an extent; for BENCH_BATCH of the gap after each page, 0 for none */
    uint32_t batch;  /* messages in one doorbell */
    uint32_t touch;  /* whether who receives an extent reads a word of each page of the message */
    uint32_t used;   /* pages of an extent that the message is in; 0 for all */
};

/* The answer to the host, when all is done: where the samples are, in ticks of the time-stamp counter. */
struct bench_answer {
    uint64_t samples_gpa;
    uint64_t samples;
};

#define BENCH_SAMPLES 4096

/* The tags of messages from bench_sender.c to bench_receiver.c. */
enum bench_tag {
    BENCH_KEEP = 1,   /* keep it */
    BENCH_BACK = 2,   /* send it back, or return it */
    BENCH_RETURN = 3, /* send all that was kept back */
    BENCH_TOUCH = 16, /* besides: read a word of each page first */
};

#endif

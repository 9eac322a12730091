/* SPDX-License-Identifier: Apache-2.0
 *
 * pf.h: the C library of pageferry's guests.
 *
 * Every call that can fail returns enum pf_status: PF_OK, or a negative PF_E_ value. Nothing here allocates
 * memory; a guest is one thread.
 */
#ifndef PF_H
#define PF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pageferry.h"

typedef struct pf_descriptor pf_message;

/* The control structure. Volatile: the monitor writes to it behind the compiler's back. */
#define PF ((volatile struct pf_control *)PF_CONTROL_GPA)

/* ---- Messages ---- */

/* Sends `pages` whole pages at `address`, of which `length` bytes count, to `peer`; then they are gone. */
int pf_send(uint32_t peer, void *address, uint64_t pages, uint64_t length, uint64_t tag);

/* Sends up to PF_PAYLOAD_MAX bytes inside the descriptor; no page moves. */
int pf_send_inline(uint32_t peer, const void *data, size_t bytes, uint64_t tag);

/* Sends a message that the caller has filled in (operation, receiver, tag, extents, payload). On return its
 * `status` and `message` are the monitor's answer. */
int pf_transmit(pf_message *message);

/* Puts a message into the transmit ring without ringing; pf_flush() rings once for all of them, and returns
 * the number refused. PF_E_RING if the ring is full. */
int pf_post(const pf_message *message);
int pf_flush(void);

/* Takes the next message, waiting up to `timeout_us` for it (PF_FOREVER: no limit; 0: only look).
 * PF_E_TIMEOUT if none came. Its extents are mapped and owned when this returns PF_OK. */
int pf_receive(pf_message *message, uint64_t timeout_us);

/* Sends `request`'s pages back to where it came from, with its tag and `bytes` of payload. */
int pf_reply(const pf_message *request, const void *payload, size_t bytes);

/* Gives whole pages back to the monitor's pool; they are gone, and read as zeros to their next owner. */
int pf_release(void *address, uint64_t pages);

/* A message's first extent as memory. */
static inline void *pf_data(const pf_message *message)
{
    return (void *)message->extents[0].gpa;
}

/* ---- Peers ---- */

#define PF_NO_PEER 0xffffffffu
uint32_t pf_peer(const char *name); /* a peer's id by its name, or PF_NO_PEER; no exit */
bool pf_alive(uint32_t peer);

/* ---- The machine ---- */

__attribute__((noreturn)) void pf_exit(int code);
__attribute__((noreturn)) void pf_panic(const char *text);
int pf_wait(uint64_t timeout_us);                     /* park until something is in the receive ring */
int pf_log(const char *text);                         /* to the user's console */
__attribute__((format(printf, 1, 2))) int pf_printf(const char *format, ...); /* %s %c %d %u %x %p %ld %lu %lx %% */
void pf_progress(uint64_t done, uint64_t total);      /* shown by the monitor's front end; no exit */
void pf_ring(uint32_t bell);                          /* the bare doorbell */

/* Stops with a panic that names the condition and the place, if `condition` does not hold. */
#define PF_STRING_(x) #x
#define PF_STRING(x) PF_STRING_(x)
#define PF_CHECK(condition) \
    ((condition) ? (void)0 : pf_panic(__FILE_NAME__ ":" PF_STRING(__LINE__) ": " #condition))

#ifndef __FILE_NAME__
#define __FILE_NAME__ __FILE__
#endif

/* ---- Strings and memory ---- */

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);

#endif

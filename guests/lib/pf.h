/* SPDX-License-Identifier: Apache-2.0
 *
 * pf.h: the C library of pageferry's guests, and beside a C library that of programs for Linux (pageferry build --libc).
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

#if __STDC_HOSTED__
#include <string.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

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

/* pf_flush(), and a wait as enum pf_wait_for says, in the same exit: half the price of the two one after the other.
 * Returns the number refused, and has not waited then; 0 when what it waits for holds, or PF_E_TIMEOUT. */
int pf_flush_wait(uint32_t wait_for, uint32_t peer, uint64_t timeout_us);

/* Transmits a message and takes the next one that comes, from whomever, as pf_receive() does, with one exit for both.
 * If it returns a refusal, or PF_E_RING because the ring is full, nothing has been received. */
int pf_call(pf_message *message, uint64_t timeout_us);

/* Takes the next message, waiting up to `timeout_us` for it (PF_FOREVER: no limit; 0: only look).
 * PF_E_TIMEOUT if none came. Its extents are mapped when this returns PF_OK; whose they are, its operation says. */
int pf_receive(pf_message *message, uint64_t timeout_us);

/* Answers `request` with its tag and `bytes` of payload. Its pages go back to where it came from: sent, if they were
 * sent; returned, if they were lent or shared. */
int pf_reply(const pf_message *request, const void *payload, size_t bytes);

/* Lets go of whatever pages a message has brought: releases what is one's own, returns what is borrowed, and gives up
 * places whose pages were reclaimed. It rings, also for what was posted. For a message that is not what it should be, or that cannot be answered: pages that
 * nobody lets go of fill the window until nothing else fits. */
void pf_drop(const pf_message *message);

/* Whether a message has brought one extent that is this machine's own from now on. Nobody can take it back, so that it
 * can be used safely whoever has sent it; what is lent or shared may be reclaimed at any moment, and may be read-only. */
static inline bool pf_owned(const pf_message *message)
{
    return message->operation == PF_OP_SEND && message->extent_count == 1;
}

/* ---- Pages ---- */

/* Lends whole pages to `peer`: gone, until it returns them (a PF_OP_RETURN message) or you reclaim them. With
 * PF_FLAG_READONLY in `flags` it may only read them. */
int pf_lend(uint32_t peer, void *address, uint64_t pages, uint64_t tag, uint16_t flags);

/* Lets `peer` see whole pages, too; call it again with another peer to share them with several. */
int pf_share(uint32_t peer, void *address, uint64_t pages, uint64_t tag, uint16_t flags);

/* Gives borrowed pages back to `owner`, whom the message that brought them names as its sender. PF_E_RECLAIMED if
 * the owner has taken them back already: pf_release() lets go of the place then. */
int pf_return(uint32_t owner, void *address, uint64_t pages, uint64_t tag);

/* Takes pages back from all who borrow them, whatever these are doing, and whether they are alive or not. */
int pf_reclaim(void *address, uint64_t pages);

/* Sends whole pages, and has as many zeroed ones in the same place when it returns. */
int pf_exchange(uint32_t peer, void *address, uint64_t pages, uint64_t length, uint64_t tag);

/* Zeroed pages from the monitor's pool; PF_E_QUOTA, PF_E_WINDOW_FULL or PF_E_NO_MEMORY if there are none. */
int pf_alloc(uint64_t pages, void **address);

/* How many pages to allocate for `bytes`, so that they lie in huge pages of their own, where the host gives any: whoever
 * gets these and touches them has one fault for each PF_HUGE_PAGES, and not one for each page. Send all of them, and as the
 * message's length what there is in them; a part would leave its huge page behind. */
#define PF_HUGE_PAGES 512

static inline uint64_t pf_huge(uint64_t bytes)
{
    uint64_t huge = PF_HUGE_PAGES * (uint64_t)PF_PAGE_SIZE;

    return (bytes / huge + (bytes % huge != 0)) * PF_HUGE_PAGES;
}

/* Gives whole pages back to the pool; they are gone, and read as zeros to their next owner. */
int pf_release(void *address, uint64_t pages);

/* What the first of `pages` pages at `address` is, whose, and for how many pages; and what the machine has left of
 * its quotas. With `pages` 0 only the latter. */
int pf_query(void *address, uint64_t pages, struct pf_answer *answer);

/* A message's first extent as memory. */
static inline void *pf_data(const pf_message *message)
{
    return (void *)message->extents[0].gpa;
}

/* ---- Peers ---- */

/* None of these exits: the monitor keeps the peer table up to date. */
uint32_t pf_peer(const char *name); /* a peer's id by its name, or PF_NO_PEER */
bool pf_alive(uint32_t peer);
bool pf_has_room(uint32_t peer);    /* whether its queue has room */

/* Waits up to `timeout_us` until the queue of `peer` has room. PF_OK if it has; PF_PENDING if a message has come
 * first: take it, and try again, since two machines that wait for each other's room without taking what the other
 * has sent would wait for ever. PF_E_DEAD, PF_E_PEER, PF_E_TIMEOUT. */
int pf_wait_room(uint32_t peer, uint64_t timeout_us);

/* The same, but not for a message: for one whom `peer`, directly or by others, never waits for, as in a pipeline. */
int pf_wait_room_only(uint32_t peer, uint64_t timeout_us);

/* Whether anything has been noticed since the last call: a peer was added or has stopped, something borrowed was
 * reclaimed, the host has set bits in PF->notices. */
bool pf_noticed(void);

/* ---- The machine ---- */

__attribute__((noreturn)) void pf_exit(int code);     /* after the destructors, as at the end of main() */
__attribute__((noreturn)) void pf_panic(const char *text);
int pf_wait(uint64_t timeout_us);                     /* park until there is a message, or a notice not yet seen */
void pf_progress(uint64_t done, uint64_t total);      /* shown by the monitor's front end; no exit */
void pf_ring(uint32_t bell);                          /* the bare doorbell */

/* Text to the user's console, of any length. More than PF_LOG_MAX bytes go in several pieces, cut after a line if there is
 * one, and never within a character of UTF-8. */
int pf_log(const char *text);

/* The same, formatted as by C's printf, but without a locale: every conversion, flag, width, precision and length. Wide
 * characters become UTF-8. What is no conversion is printed as it is written. */
__attribute__((format(printf, 1, 2))) int pf_printf(const char *format, ...);
__attribute__((format(printf, 1, 0))) int pf_vprintf(const char *format, va_list arguments);

/* Stops with a panic that names the condition and the place, if `condition` does not hold. */
#define PF_STRING_(x) #x
#define PF_STRING(x) PF_STRING_(x)
#define PF_CHECK(condition) \
    ((condition) ? (void)0 : pf_panic(__FILE_NAME__ ":" PF_STRING(__LINE__) ": " #condition))

#ifndef __FILE_NAME__
#define __FILE_NAME__ __FILE__
#endif

/* ---- Strings and memory, where there is no C library ---- */

#if !__STDC_HOSTED__
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);
#endif

#ifdef __cplusplus
}
#endif

#endif

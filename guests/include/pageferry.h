/* SPDX-License-Identifier: Apache-2.0
 *
 * pageferry.h: the guest ABI, and its one definition.
 *
 * Guests include it; the monitor's side (vmm/guest/abi.py) is generated from it by scripts/generate_abi.
 * The grammar is kept narrow on purpose, so that the generator stays a page long: a `#define` of a number,
 * an `enum` of constants, a `struct` of fixed-width fields with an offset comment that the layout asserts check.
 *
 * Everything in the control structure may be read by the guest at any time. Fields marked "guest" are
 * written by the guest and read by the monitor once, at a doorbell; the others are the monitor's, which
 * keeps the true value on its own side and never reads them back.
 */
#ifndef PAGEFERRY_H
#define PAGEFERRY_H

#include <stddef.h>
#include <stdint.h>

/* The version travels in the ELF note PF_NOTE_NAME/PF_NOTE_ABI: { major, minor }. A monitor loads a guest
 * whose major is its own and whose minor is not above its own. A program for Linux, with a C library, that uses this
 * ABI has the same under PF_NOTE_LINUX. */
#define PF_ABI_MAJOR 1
#define PF_ABI_MINOR 2
#define PF_NOTE_NAME "pageferry"
#define PF_NOTE_ABI 0x5046
#define PF_NOTE_LINUX 0x504c

/* ---- The machine: one flat space, linear address == guest-physical address ------------------------- */

#define PF_PAGE_SIZE 4096
#define PF_CONTROL_GPA 0x00010000    /* the control structure, in private memory */
#define PF_IMAGE_GPA 0x00200000      /* the lowest address an image may be linked at */
#define PF_DOORBELL_GPA 0x3ffff000   /* the doorbell page: never backed by memory */
#define PF_DOORBELL_PORT 0x5046      /* the doorbell's I/O port */
#define PF_WINDOW_GPA 0x100000000    /* the window, where transferable pages live */

/* The FS base, since ABI 1.2: if the image has a PT_TLS, the first multiple of its alignment after it, where there is to
 * be a 64-bit word that holds that address (System V ABI, thread-local storage, variant II); otherwise 0. */

/* ---- The doorbell: the guest's exit ----------------------------------------------------------------- */

/* How to ring, as the monitor found that this host allows: a 32-bit store to PF_DOORBELL_GPA, a 32-bit OUT to
 * PF_DOORBELL_PORT, or, in ring 0, the hypercall KVM_HC_MAP_GPA_RANGE. The value is one of enum pf_bell. */
enum pf_doorbell {
    PF_DOORBELL_MMIO = 1,
    PF_DOORBELL_PIO = 2,
    PF_DOORBELL_VMCALL = 3,  /* Intel's instruction */
    PF_DOORBELL_VMMCALL = 4, /* AMD's */
};

enum pf_bell {
    PF_BELL_TRANSMIT = 1,      /* process the transmit ring up to tx_head */
    PF_BELL_WAIT = 2,          /* park until what wait_for says, or until wait_timeout_us have passed */
    PF_BELL_TRANSMIT_WAIT = 3, /* both, in one exit; no wait if a descriptor is refused */
    PF_BELL_LOG = 4,           /* print log_length bytes at log_gpa */
    PF_BELL_EXIT = 5,          /* stop with exit_code */
    PF_BELL_PANIC = 6,         /* stop with a fault whose message is at log_gpa */
    PF_BELL_DIRECT = 7,        /* hypercall only: one operation, all of it in registers */
};

/* The hypercall's registers: RAX its number, RBX an address, RCX a number of pages, RDX the attribute word; the
 * kernel insists on an aligned address and at least one page. A doorbell is { 0, 1, bell }. PF_BELL_DIRECT carries
 * an operation on one extent, with no descriptor at all: its address and pages in RBX and RCX, and in RDX
 *
 *     bits 0-7   PF_BELL_DIRECT     bits 16-31  the peer's id
 *     bits 8-13  the operation      bits 32-63  the tag
 *     bit 14     read-only          bit 15      zero
 *
 * The message's length is that of its pages. RAX returns the status. PF_OP_ALLOC and PF_OP_QUERY, whose answers
 * need a descriptor, are refused here with PF_E_OPERATION. */
#define PF_HYPERCALL 12 /* KVM_HC_MAP_GPA_RANGE */
#define PF_DIRECT_PEER_MAX 0xffff
#define PF_DIRECT_TAG_MAX 0xffffffff
#define PF_DIRECT_READONLY 0x4000

#define PF_FOREVER 0xffffffffffffffff /* wait_timeout_us: no time-out */
#define PF_LOG_MAX 4096               /* bytes printed by one PF_BELL_LOG; more is refused */

/* What a wait is for: wait_for is any of these together, and 0 is PF_WAIT_MESSAGE. The wait ends, with PF_OK, as soon
 * as one of them holds; what holds already when the doorbell is rung ends it at once, so nothing is slept through. */
enum pf_wait_for {
    PF_WAIT_MESSAGE = 1, /* there is a message in the receive ring */
    PF_WAIT_ROOM = 2,    /* the queue of wait_peer has room (PF_E_DEAD if it has stopped, PF_E_PEER if unknown) */
    PF_WAIT_NOTICE = 4,  /* notice_count is not notices_seen */
};

/* ---- Messages ---------------------------------------------------------------------------------------- */

/* Operations. Each names extents of one's own window and is done as a whole, or refused as a whole with a status,
 * everything being as before. SEND, LEND, SHARE and EXCHANGE put a message into the receiver's queue and need a
 * channel to it; a payload and a tag may go with the pages. */
enum pf_operation {
    PF_OP_SEND = 1,     /* give the extents away; without extents, only the payload */
    PF_OP_LEND = 2,     /* let the receiver alone have them until it returns them or you reclaim them */
    PF_OP_SHARE = 3,    /* let the receiver see them too; again, with another receiver, for several borrowers */
    PF_OP_RETURN = 4,   /* give borrowed extents back to `receiver`, their owner; needs a channel for a payload only */
    PF_OP_RECLAIM = 5,  /* take lent or shared extents back from all who borrow them, now; no receiver, no message */
    PF_OP_ALLOC = 6,    /* zeroed pages: each extent gives `pages`, with gpa 0; the answer fills in each gpa */
    PF_OP_RELEASE = 7,  /* give extents back to the pool, or let go of places whose pages were reclaimed */
    PF_OP_EXCHANGE = 8, /* SEND, and have as many zeroed pages in the same places at once */
    PF_OP_QUERY = 9,    /* about one extent, or none: the answer is a struct pf_answer in the payload */
    PF_OP_UNDELIVERED = 128, /* received only: a message of one's own comes back, its pages too; status says why */
};

enum pf_flags {
    PF_FLAG_READONLY = 1, /* LEND, SHARE: the borrower may read, not write; its hardware mapping sees to that */
};

/* What a page of the window is to its machine: the states of the protocol. */
enum pf_hold {
    PF_HOLD_NONE = 0,     /* nothing: no access */
    PF_HOLD_OWNED = 1,    /* one's own, and nobody else's: read and write */
    PF_HOLD_SHARED = 2,   /* one's own, and others see it: read and write */
    PF_HOLD_LENT = 3,     /* one's own, but a borrower has it: no access */
    PF_HOLD_SENT = 4,     /* sent, not delivered yet: no access; the place is kept in case it comes back */
    PF_HOLD_INCOMING = 5, /* the place of a message that is not delivered yet: no access */
    PF_HOLD_BORROWED = 6, /* a peer's, to read and write until it is returned or reclaimed */
    PF_HOLD_VIEWED = 7,   /* a peer's, to read */
    PF_HOLD_REVOKED = 8,  /* was borrowed and has been reclaimed: no access; RELEASE lets go of the place, once the
                           * message that brought it has been delivered */
};

enum pf_status {
    PF_OK = 0,
    PF_PENDING = 1,         /* what the guest writes before it rings */
    PF_E_OPERATION = -1,    /* unknown, or not served */
    PF_E_PEER = -2,         /* no such peer, or no channel to it: the two look the same */
    PF_E_DEAD = -3,         /* the peer has stopped */
    PF_E_QUEUE_FULL = -4,   /* the peer's queue is full, and the place (in the host's: two) of one's own is taken */
    PF_E_WINDOW_FULL = -5,  /* the window that is to have the extents (the peer's, for ALLOC one's own) has no room */
    PF_E_ALIGNMENT = -6,    /* an extent's address is not a multiple of the page size */
    PF_E_RANGE = -7,        /* an extent is empty, overflows, or leaves the window */
    PF_E_OWNERSHIP = -8,    /* a page of an extent is not the machine's own (PF_HOLD_NONE, SENT or INCOMING) */
    PF_E_OVERLAP = -9,      /* two extents of one message overlap */
    PF_E_RESERVED = -10,    /* a reserved field or flag is not zero */
    PF_E_LENGTH = -11,      /* a count or length is not within its limits, or beyond the extents */
    PF_E_QUOTA = -12,       /* the pages, or pieces of window, that the owner-to-be may have are used up */
    PF_E_NO_MEMORY = -13,   /* the pool, or the host's mappings, have nothing left but others' shares; or the host could
                             * not do it. Nothing has changed */
    PF_E_TIMEOUT = -14,     /* the wait timed out */
    PF_E_ADDRESS = -15,     /* log_gpa and log_length do not lie in private memory */
    PF_E_RING = -16,        /* tx_head or rx_tail makes no sense; nothing was processed */
    PF_E_BELL = -17,        /* unknown doorbell value, or wait_for */
    PF_E_LENT = -18,        /* a page is one's own but lent or shared: reclaim it first */
    PF_E_BORROWED = -19,    /* a page is borrowed: it can only be returned */
    PF_E_RECLAIMED = -20,   /* a page was borrowed, and its owner has taken it back: release the place */
    PF_E_NOT_LENT = -21,    /* RECLAIM of a page that is not lent or shared, RETURN of one not borrowed of that peer */
    PF_E_REPEATED = -23,    /* SHARE with a peer that has a page of the extents already (-22 is the kernel's EINVAL) */
};

#define PF_EXTENTS_MAX 16
#define PF_PAYLOAD_MAX 192
#define PF_NAME_MAX 32 /* a name's bytes, its terminating zero included */

/* A run of adjacent pages in one window: the unit of every operation. */
struct pf_extent {
    uint64_t gpa;        /* 0 */
    uint32_t pages;      /* 8 */
    uint32_t attributes; /* 12: zero */
};

/* One message, in either ring. "Data, or an address, or both": payload and extents may each be absent. */
struct pf_descriptor {
    uint16_t operation;                         /* 0: enum pf_operation */
    uint16_t flags;                             /* 2: enum pf_flags */
    int32_t status;                             /* 4: enum pf_status, the monitor's answer */
    uint32_t sender;                            /* 8: stamped by the monitor; what a guest writes is ignored */
    uint32_t receiver;                          /* 12: a peer's id */
    uint64_t tag;                               /* 16: the sender's word, carried unchanged */
    uint64_t length;                            /* 24: bytes of the message within its extents */
    uint64_t message;                           /* 32: the monitor's name for this message, stamped */
    uint16_t extent_count;                      /* 40 */
    uint16_t payload_length;                    /* 42 */
    uint32_t reserved0;                         /* 44: zero */
    uint64_t reserved1[2];                      /* 48: zero */
    struct pf_extent extents[PF_EXTENTS_MAX];   /* 64 */
    uint8_t payload[PF_PAYLOAD_MAX];            /* 320 */
};

/* What PF_OP_QUERY answers, in the payload. Without an extent the first part is zero. */
#define PF_NO_PEER 0xffffffff
#define PF_ANSWER_BORROWERS 16

struct pf_answer {
    uint32_t hold;            /* 0: enum pf_hold of the extent's first page */
    uint32_t pages;           /* 4: pages, from the first on, for which all of this holds */
    uint32_t owner;           /* 8: a peer's id, one's own too, also of one who has stopped; PF_NO_PEER for none */
    uint32_t borrower_count;  /* 12 */
    uint32_t borrowers[PF_ANSWER_BORROWERS]; /* 16: the first of them, to the owner and to themselves */
    uint64_t pages_held;      /* 80: pages that count against the quota: one's own, and those coming in to stay */
    uint64_t pages_quota;     /* 88 */
    uint32_t pieces_held;     /* 96: runs of pages in the window that cannot be joined */
    uint32_t pieces_quota;    /* 100 */
    uint64_t pool_free;       /* 104: pages that the pool has left, for all machines */
};

/* ---- Calls --------------------------------------------------------------------------------------------- */

/* A machine can be a library whose functions the host calls: a convention between the host and guests/lib/sandbox, made of
 * messages as above. The machine says that it is ready by a message without pages whose tag is PF_CALL_READY and whose payload
 * is one 32-bit word, PF_CALL_VERSION. Then each call is a message from the host without pages whose payload begins with
 * struct pf_call; the answer is a message with the same tag, without pages, whose payload begins with struct pf_result.
 *
 * What follows struct pf_call are 64-bit words: `general` for RDI, RSI, RDX, RCX, R8 and R9, `vector` for the low halves of XMM0 to
 * XMM7, `stack` for the stack, in order; then `data` bytes, which are arguments as well; then `places` that say which words are to
 * point to these. The host keeps the data aligned to 16 bytes, from the payload's beginning on. They follow struct pf_result in
 * the answer. With PF_CALL_SPILLED there is one word instead: the address of the words; there are no data then.
 *
 * Words are addresses, too: of the machine's memory, or of what the host shares with it. That no message tells of, and no
 * answer returns it. The host shares it before it asks for a call, and takes it back when the machine is not running. */
#define PF_CALL_VERSION 3
#define PF_CALL_READY 0xffffffffffffffff /* a tag */
#define PF_CALL_GENERAL 6                /* registers */
#define PF_CALL_VECTOR 8

enum pf_call_flags {
    PF_CALL_SPILLED = 1,
};

struct pf_call {
    uint64_t function; /* 0: its address */
    uint8_t flags;     /* 8: enum pf_call_flags */
    uint8_t general;   /* 9 */
    uint8_t vector;    /* 10 */
    uint8_t places;    /* 11 */
    uint16_t stack;    /* 12 */
    uint16_t data;     /* 14 */
};

/* Word `word` is the address of byte `offset` of the data. */
struct pf_place {
    uint16_t word;   /* 0 */
    uint16_t offset; /* 2 */
};

struct pf_result {
    uint64_t rax;  /* 0 */
    uint64_t rdx;  /* 8 */
    uint64_t xmm0; /* 16 */
    uint64_t xmm1; /* 24 */
};

/* ---- The control structure: shared by one machine and the monitor ------------------------------------ */

#define PF_MAGIC 0x5952524546474150 /* "PAGFERRY" in memory order */
#define PF_PEERS_MAX 256
#define PF_TX_ENTRIES 64
#define PF_RX_ENTRIES 64
#define PF_PEER_HOST 0 /* the id of the host process itself */

enum pf_peer_flags {
    PF_PEER_ALIVE = 1, /* it runs, or will */
    PF_PEER_SEND = 2,  /* a channel leads there */
    PF_PEER_ROOM = 4,  /* its queue has room for a message of one's own, as of now */
};

struct pf_peer {
    uint32_t id;            /* 0 */
    uint32_t flags;         /* 4: enum pf_peer_flags */
    uint32_t room;          /* 8: free places in its queue, as of one's last message there; the flag is up to date */
    uint32_t reserved;      /* 12 */
    char name[PF_NAME_MAX]; /* 16 */
    uint64_t reserved1[2];  /* 48 */
};

/* Ring indices run free and wrap at 2^32; entry i is at i % ENTRIES. */
struct pf_control {
    uint64_t magic;             /* 0 */
    uint16_t abi_minor;         /* 8 */
    uint16_t abi_major;         /* 10 */
    uint32_t size;              /* 12: of this structure, in bytes */
    uint32_t self;              /* 16: this machine's id */
    uint32_t peer_count;        /* 20 */
    uint32_t privilege;         /* 24: the ring the machine runs in, 0 or 3 */
    uint32_t doorbell;          /* 28: enum pf_doorbell */
    uint64_t window_gpa;        /* 32 */
    uint64_t window_pages;      /* 40 */
    uint64_t stack_gpa;         /* 48: lowest address of the stack; what is below faults */
    uint64_t stack_bytes;       /* 56 */
    char name[PF_NAME_MAX];     /* 64 */
    uint64_t reserved0[4];      /* 96 */

    uint32_t tx_head;           /* 128: guest; descriptors put so far */
    uint32_t rx_tail;           /* 132: guest; messages taken so far */
    uint64_t wait_timeout_us;   /* 136: guest */
    uint64_t log_gpa;           /* 144: guest */
    uint32_t log_length;        /* 152: guest */
    int32_t exit_code;          /* 156: guest */
    uint64_t progress_done;     /* 160: guest; shown to the user, nothing else */
    uint64_t progress_total;    /* 168: guest */
    uint32_t wait_for;          /* 176: guest; enum pf_wait_for */
    uint32_t wait_peer;         /* 180: guest; for PF_WAIT_ROOM */
    uint32_t notices_seen;      /* 184: guest; for PF_WAIT_NOTICE, the notice_count it knows */
    uint32_t reserved1;         /* 188 */

    uint32_t tx_tail;           /* 192: descriptors the monitor has answered */
    uint32_t rx_head;           /* 196: messages the monitor has put */
    int32_t bell_status;        /* 200: enum pf_status of the last doorbell as a whole */
    uint32_t notices;           /* 204: bits set by the host; their meaning is between it and the guest */
    uint32_t notice_count;      /* 208: notices so far, all of the following together */
    uint32_t peer_notices;      /* 212: times that a peer was added, or stopped: look at the peer table */
    uint32_t reclaim_notices;   /* 216: times that something borrowed was reclaimed: PF_OP_QUERY tells what */
    uint32_t host_notices;      /* 220: times that the host set bits in `notices` */
    uint64_t reserved2[484];    /* 224 */

    struct pf_peer peers[PF_PEERS_MAX];         /* 4096 */
    struct pf_descriptor tx[PF_TX_ENTRIES];     /* 20480 */
    struct pf_descriptor rx[PF_RX_ENTRIES];     /* 53248 */
};

#ifndef __cplusplus
_Static_assert(sizeof(struct pf_extent) == 16, "struct pf_extent");
_Static_assert(offsetof(struct pf_descriptor, extents) == 64, "struct pf_descriptor.extents");
_Static_assert(offsetof(struct pf_descriptor, payload) == 320, "struct pf_descriptor.payload");
_Static_assert(sizeof(struct pf_descriptor) == 512, "struct pf_descriptor");
_Static_assert(sizeof(struct pf_answer) == 112, "struct pf_answer");
_Static_assert(sizeof(struct pf_answer) <= PF_PAYLOAD_MAX, "an answer fits a payload");
_Static_assert(sizeof(struct pf_peer) == 64, "struct pf_peer");
_Static_assert(sizeof(struct pf_call) == 16, "struct pf_call");
_Static_assert(sizeof(struct pf_place) == 4, "struct pf_place");
_Static_assert(sizeof(struct pf_result) == 32, "struct pf_result");
_Static_assert(offsetof(struct pf_control, tx_head) == 128, "guest-written fields on a line of their own");
_Static_assert(offsetof(struct pf_control, tx_tail) == 192, "monitor-written fields on a line of their own");
_Static_assert(offsetof(struct pf_control, peers) == 4096, "struct pf_control.peers");
_Static_assert(offsetof(struct pf_control, tx) == 20480, "struct pf_control.tx");
_Static_assert(offsetof(struct pf_control, rx) == 53248, "struct pf_control.rx");
_Static_assert(sizeof(struct pf_control) == 86016, "struct pf_control");
_Static_assert(PF_CONTROL_GPA + sizeof(struct pf_control) <= 0x40000, "the page tables follow at 0x40000");
#endif

#endif

"""The rules of the protocol: what may be done with a page, by what it is to who asks. Pure.

One column for each operation, one row for each hold (guests/include/pageferry.h, enum pf_hold). A
status refuses the operation for all its extents; a hold is what the page is to the asker
afterwards:

    asker's hold  becomes, by
                  SEND     LEND    SHARE    EXCHANGE  RELEASE  RECLAIM  RETURN
    OWNED         SENT     LENT    SHARED   OWNED(*)  NONE
    SHARED                         SHARED                      OWNED
    LENT                                                       OWNED
    BORROWED                                                            NONE
    VIEWED                                                              NONE
    REVOKED                                           NONE

    REVOKED, while the message that brought it is still in the queue, is not released: E_OWNERSHIP.

    (*) other frames, which read as zeros: the old ones are SENT, from a place of their own

What happens to the peer's side of the page:

    event                            peer's hold            asker's hold
    -----                            -----------            ------------
    SEND, EXCHANGE, LEND, SHARE      NONE -> INCOMING       as above
    SEND, EXCHANGE is delivered      INCOMING -> OWNED      SENT -> NONE
    LEND is delivered                INCOMING -> BORROWED   LENT
    SHARE is delivered               INCOMING -> BORROWED   SHARED
    the same, read-only              INCOMING -> VIEWED
    RETURN                           LENT -> OWNED          as above
                                     SHARED -> OWNED, or still SHARED if others borrow it
    RECLAIM                          INCOMING, BORROWED, VIEWED -> REVOKED
    what is INCOMING comes back      SENT, LENT -> OWNED; SHARED as by RETURN
    the borrower dies                as by RETURN, but the message says E_DEAD
    the owner dies                   BORROWED, VIEWED, INCOMING stay; the frame is free once all
                                     have let go of it
"""

from __future__ import annotations

from vmm.guest.abi import Hold, Operation, Status


class Refusal(Exception):
    """An operation that may not be; `status` is what its asker is told. Nothing was changed."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


_OK, _NOT_OWN, _LENT = Status.OK, Status.E_OWNERSHIP, Status.E_LENT
_BORROWED, _REVOKED, _NOT_LENT = Status.E_BORROWED, Status.E_RECLAIMED, Status.E_NOT_LENT

# fmt: off
_ROWS = {
    #               SEND       LEND       SHARE      EXCHANGE   RELEASE    RECLAIM    RETURN
    Hold.NONE:     (_NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_LENT, _NOT_LENT),
    Hold.OWNED:    (_OK,       _OK,       _OK,       _OK,       _OK,       _NOT_LENT, _NOT_LENT),
    Hold.SHARED:   (_LENT,     _LENT,     _OK,       _LENT,     _LENT,     _OK,       _NOT_LENT),
    Hold.LENT:     (_LENT,     _LENT,     _LENT,     _LENT,     _LENT,     _OK,       _NOT_LENT),
    Hold.SENT:     (_NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_LENT, _NOT_LENT),
    Hold.INCOMING: (_NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_OWN,  _NOT_LENT, _NOT_LENT),
    Hold.BORROWED: (_BORROWED, _BORROWED, _BORROWED, _BORROWED, _BORROWED, _BORROWED, _OK),
    Hold.VIEWED:   (_BORROWED, _BORROWED, _BORROWED, _BORROWED, _BORROWED, _BORROWED, _OK),
    Hold.REVOKED:  (_REVOKED,  _REVOKED,  _REVOKED,  _REVOKED,  _OK,       _REVOKED,  _REVOKED),
}
# fmt: on
_COLUMNS = (
    *(Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE),
    *(Operation.RELEASE, Operation.RECLAIM, Operation.RETURN),
)

RULES: dict[tuple[Operation, Hold], Status] = {
    (operation, hold): status
    for hold, row in _ROWS.items()
    for operation, status in zip(_COLUMNS, row, strict=True)
}

READABLE = frozenset({Hold.OWNED, Hold.SHARED, Hold.BORROWED, Hold.VIEWED})
WRITABLE = READABLE - {Hold.VIEWED}

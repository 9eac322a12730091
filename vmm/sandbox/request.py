"""A call as the message that asks for it. Pure; pageferry.h, "Calls", has the layout."""

from __future__ import annotations

import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE, PAYLOAD_MAX, CallFlags
from vmm.memory.runs import Extent
from vmm.sandbox.ctype import round_up

_HEAD = struct.Struct("<QBBBBHH")
_PLACE = struct.Struct("<HH")
_ADDRESS = struct.Struct("<Q")
_RESULT = struct.Struct("<4Q")
RESULT_BYTES = _RESULT.size
ALIGNED = 16  # bytes, for what is copied: as malloc(3) does
_SPILLED = int(CallFlags.SPILLED)
_DATA_MAX = PAYLOAD_MAX - RESULT_BYTES  # as it comes back by the answer


class Words(NamedTuple):
    """A function's address, and its arguments by where they go: 64-bit words."""

    function: int
    general: Sequence[int]
    vector: Sequence[int]
    stack: Sequence[int]


class Seen(NamedTuple):
    """An argument word that points to memory of the host's window, which the function sees itself.

    start    the first byte, counted from the window's; size in bytes
    """

    word: int
    start: int
    size: int
    const: bool


class Copied(NamedTuple):
    """An argument word that points to bytes that are copied; and back, unless they are `const`.

    align      of the copy
    address    of the bytes here; 0 if no other's can be the same ones. What overlaps here does so
               in the machine
    pointers   what the words that it begins with are to point to there: offsets within it, or 0 for
               NULL
    """

    word: int
    data: memoryview
    const: bool
    align: int = ALIGNED
    address: int = 0
    pointers: Sequence[int] = ()


class Result(NamedTuple):
    """What the function left in the registers that results are in."""

    rax: int
    rdx: int
    xmm0: int
    xmm1: int


class Areas(NamedTuple):
    """What a call shares.

    extents  of the host's window, disjoint and in order, and whether the function may write there
    where    for each Seen its extent, and the offset within
    roomy    whether any is more than what is pointed to, and the rest of its last page
    """

    extents: Sequence[tuple[Extent, bool]]
    where: Sequence[tuple[Extent, int]]
    roomy: bool = False


_NONE = Areas((), ())


def _as_it_is(first: int, end: int) -> int:
    return end


def areas(seen: Sequence[Seen], room: Callable[[int, int], int] = _as_it_is) -> Areas:
    """Say which pages are to be shared, and how. What has a page in common is one extent, writable
    if any of it is.

    room    says where pages first..end are to end: what follows them may belong to them
    """
    if not seen:
        return _NONE
    if len(seen) == 1:  # as most have
        _, start, size, const = seen[0]
        first, end = start // PAGE_SIZE, -(-(start + (size or 1)) // PAGE_SIZE)
        last = room(first, end)
        extent = Extent(first, last - first)
        return Areas(((extent, not const),), ((extent, start - first * PAGE_SIZE),), last != end)
    merged: list[tuple[int, int, bool]] = []
    for first, end, writable in sorted(
        [
            (s.start // PAGE_SIZE, -(-(s.start + (s.size or 1)) // PAGE_SIZE), not s.const)
            for s in seen
        ]
    ):
        if merged and first < merged[-1][1]:
            before = merged.pop()
            first, end, writable = before[0], max(end, before[1]), writable or before[2]
        merged.append((first, end, writable))
    extents = [Extent(first, room(first, end) - first) for first, end, _ in merged]
    where = []
    for start in [s.start for s in seen]:
        at = bisect_right(extents, (start // PAGE_SIZE, sys.maxsize)) - 1
        where.append((extents[at], start - extents[at].page * PAGE_SIZE))
    roomy = any(extent.end != end for extent, (_, end, _) in zip(extents, merged, strict=True))
    return Areas([(e, m[2]) for e, m in zip(extents, merged, strict=True)], where, roomy)


class Laid(NamedTuple):
    """Where what a call copies is to be.

    copies   each Copied and where it is: in the data, there and in the answer, or in memory
    size     bytes of the data
    memory   bytes that it takes; none, if the message has room
    words    bytes of the call's words at its beginning, if the message has no room for them
    """

    copies: Sequence[tuple[Copied, int]]
    size: int = 0
    memory: int = 0
    words: int = 0


_NOTHING = Laid(())


class Asked(NamedTuple):
    """A call's message.

    payload   the message's
    head      what is to be at the beginning of memory for copies, if anything
    laid      what it copies
    """

    payload: bytes
    head: bytes
    laid: Laid


def pointed(
    words: Words, seen: Sequence[Seen], shared: Areas, starts: Mapping[Extent, int]
) -> Words:
    """Return the words, of which those that are to point to what is seen do.

    starts    where the machine sees each extent: an address of its own
    """
    places = [
        (one.word, starts[extent] + offset)
        for one, (extent, offset) in zip(seen, shared.where, strict=True)
    ]
    return _replaced(words, places)


def laid_out(words: Words, copied: Sequence[Copied]) -> Laid:
    """Say where what a call copies is to be: in its message, if that has room."""
    count = len(words.general) + len(words.vector) + len(words.stack)
    size = _HEAD.size + 8 * count
    if not copied and size <= PAYLOAD_MAX:
        return _NOTHING
    # Payloads are not aligned to more, and addresses there are not known.
    if len(copied[0].data if copied else ()) <= _DATA_MAX and not any(
        one.align > ALIGNED or one.pointers for one in copied
    ):
        copies, data = _placed(copied, 0)
        whole = size + 8 * (count % 2) + data + _PLACE.size * len(copied)
        if whole <= PAYLOAD_MAX and data <= _DATA_MAX:
            return Laid(copies, data)
    start = 0 if size <= PAYLOAD_MAX else 8 * count
    copies, end = _placed(copied, start)
    return Laid(copies, 0, max(end, 1), start)


def asked(words: Words, laid: Laid, address: int = 0) -> Asked:
    """Return the message of a call.

    address   where the machine sees the memory for what it copies, if it takes any
    """
    copies, size, memory, start = laid
    if memory:
        words = _replaced(words, [(one.word, address + at) for one, at in copies])
    if start:
        head = _head(words, _SPILLED, 0, 0)
        return Asked(head + _ADDRESS.pack(address), _packed(words), laid)
    if memory or not copies:
        return Asked(_head(words, 0, 0, 0) + _packed(words), b"", laid)
    words, data = _evened(words), bytearray(size)
    for one, at in copies:
        data[at : at + len(one.data)] = one.data
    for one, at in copies:
        data += _PLACE.pack(one.word, at)
    return Asked(_head(words, 0, len(copies), size) + _packed(words) + data, b"", laid)


def result(payload: bytes) -> tuple[Result, bytes]:
    """Return what an answer says, and the data that was in the call's payload."""
    return Result(*_RESULT.unpack_from(payload)), payload[_RESULT.size :]


def _placed(copied: Sequence[Copied], start: int) -> tuple[list[tuple[Copied, int]], int]:
    """Return where each is, in the order of these places, and where they end."""
    found: list[tuple[Copied, int]] = []
    shift = over = 0  # what lies before `over` here is that far away there
    if len(copied) > 1:
        copied = sorted(copied, key=_address)
    for one in copied:
        if one.address < over:
            at = one.address + shift
        else:
            at = round_up(start, one.align)
            shift = at - one.address
        found.append((one, at))
        start = max(start, at + len(one.data))
        over = start - shift if one.address else 0
    return found, start


def _address(one: Copied) -> int:
    return one.address


def _replaced(words: Words, places: Sequence[tuple[int, int]]) -> Words:
    """Return the words, some of them replaced: each by its number."""
    if not places:
        return words
    values = [*words.general, *words.vector, *words.stack]
    for word, value in places:
        values[word] = value
    first, second = len(words.general), len(words.general) + len(words.vector)
    return Words(words.function, values[:first], values[first:second], values[second:])


def _evened(words: Words) -> Words:
    """Return the words with one more on the stack, where nobody looks, if they are odd in number:
    so the data that follows them is aligned.
    """
    if (len(words.general) + len(words.vector) + len(words.stack)) % 2:
        return words._replace(stack=(*words.stack, 0))
    return words


def _head(words: Words, flags: int, places: int, size: int) -> bytes:
    function, general, vector, stack = words
    return _HEAD.pack(function, flags, len(general), len(vector), places, len(stack), size)


def _packed(words: Words) -> bytes:
    values = (*words.general, *words.vector, *words.stack)
    return struct.pack(f"<{len(values)}Q", *values)

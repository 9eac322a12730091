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


class Asked(NamedTuple):
    """A call's message, and what it copies.

    payload   the message's
    head      what is to be at the beginning of memory for copies, if anything
    copies    each Copied and where it is: in that memory; or in the data, there and in the answer
    size      of the data
    """

    payload: bytes
    head: bytes
    copies: Sequence[tuple[Copied, int]]
    size: int = 0


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


def inline(words: Words, copied: Sequence[Copied]) -> Asked | None:
    """Return the message of a call that brings what it copies, and brings it back; None if that
    does not fit, or points to something itself.
    """
    copies: Sequence[tuple[Copied, int]] = ()
    size = 0
    if copied:
        if len(copied[0].data) > _DATA_MAX:
            return None
        if any(one.align > ALIGNED or one.pointers for one in copied):
            return None  # payloads are not aligned to more, and addresses there not known
        words = _evened(words)
        copies, size = _placed(copied, 0)
    if _words_size(words) + size + _PLACE.size * len(copied) > PAYLOAD_MAX or size > _DATA_MAX:
        return None
    data = bytearray(size)
    for one, at in copies:
        data[at : at + len(one.data)] = one.data
    for one, at in copies:
        data += _PLACE.pack(one.word, at)
    return Asked(_head(words, 0, len(copies), size) + _packed(words) + data, b"", copies, size)


def spilled(words: Words, copied: Sequence[Copied], address: int) -> Asked:
    """Return the message of a call that copies to memory which the machine sees at an address. So
    it does its words, if they do not fit.
    """
    start = _spilled_words(words)
    copies, _ = _placed(copied, start)
    words = _replaced(words, [(one.word, address + at) for one, at in copies])
    if not start:
        return Asked(_head(words, 0, 0, 0) + _packed(words), b"", copies)
    return Asked(_head(words, _SPILLED, 0, 0) + _ADDRESS.pack(address), _packed(words), copies)


def spilled_size(words: Words, copied: Sequence[Copied]) -> int:
    """Return how many bytes `spilled` needs."""
    return _placed(copied, _spilled_words(words))[1]


def _spilled_words(words: Words) -> int:
    """Return how many bytes of memory the words need; none, if they fit their message."""
    size = _words_size(words)
    return 0 if size <= PAYLOAD_MAX else size - _HEAD.size


def _words_size(words: Words) -> int:
    return _HEAD.size + 8 * (len(words.general) + len(words.vector) + len(words.stack))


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

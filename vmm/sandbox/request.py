"""A call as the messages that ask for it. Pure; pageferry.h, "Calls", has the layout."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from vmm.endpoint.calling import Part
from vmm.guest.abi import (
    CALL_DATA,
    PAGE_SIZE,
    PAYLOAD_MAX,
    CallFlags,
)
from vmm.memory.runs import Extent
from vmm.sandbox.ctype import round_up

_HEAD = struct.Struct("<QBBBBHH")
_PLACE = struct.Struct("<HBBIQ")
_RESULT = struct.Struct("<4Q")
RESULT_BYTES = _RESULT.size
ALIGNED = 16  # bytes, for what is copied: as malloc(3) does
PLACES_MAX = 255  # what struct pf_call has room for
_SPILLED, _MORE = int(CallFlags.SPILLED), int(CallFlags.MORE)
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
               NULL. It is not `inline` then
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
    """What a call shares: extents of the host's window that are disjoint, by their rights.

    where    for each Seen its extent, and the offset within: of `const` ones, then `writable` ones
    roomy    whether any is more than what is pointed to, and the rest of its last page
    """

    const: Sequence[Extent]
    writable: Sequence[Extent]
    where: Sequence[tuple[Extent, int]]
    roomy: bool = False


_NONE = Areas((), (), ())


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
        (s.start // PAGE_SIZE, -(-(s.start + max(s.size, 1)) // PAGE_SIZE), not s.const)
        for s in seen
    ):
        if merged and first < merged[-1][1]:
            before = merged.pop()
            first, end, writable = before[0], max(end, before[1]), writable or before[2]
        merged.append((first, end, writable))
    extents = [Extent(first, room(first, end) - first) for first, end, _ in merged]
    where = []
    for start in (s.start for s in seen):
        page = start // PAGE_SIZE
        extent = next(e for e in extents if e.page <= page < e.end)
        where.append((extent, start - extent.page * PAGE_SIZE))
    pairs = list(zip(extents, merged, strict=True))
    return Areas(
        [extent for extent, (_, _, writable) in pairs if not writable],
        [extent for extent, (_, _, writable) in pairs if writable],
        where,
        any(extent.end != end for extent, (_, end, _) in pairs),
    )


class Spill(NamedTuple):
    """What is put into memory of the host's that the machine sees.

    head        at its beginning: the words, the places
    copies      each Copied and where it is
    size        of all of it
    """

    head: bytes
    copies: Sequence[tuple[Copied, int]]
    size: int


class Inline(NamedTuple):
    """A call that fits its messages.

    copies    each Copied and where it is in the data, there and in the answer
    size      of the data
    """

    parts: list[Part]
    copies: Sequence[tuple[Copied, int]]
    size: int


def inline(
    words: Words, seen: Sequence[Seen], copied: Sequence[Copied], shared: Areas
) -> Inline | None:
    """Return the messages of a call whose arguments fit a payload, and what is copied the answer's;
    None if they do not.
    """
    copies: list[tuple[Copied, int]] = []
    size = 0
    if copied:
        if len(copied[0].data) > _DATA_MAX or max([one.align for one in copied]) > ALIGNED:
            return None  # payloads are not aligned to more
        words = _evened(words)
        copies, size = _placed(copied, 0)
    count = len(words.general) + len(words.vector) + len(words.stack)
    whole = _HEAD.size + 8 * count + _PLACE.size * (len(seen) + len(copied)) + size
    if whole > PAYLOAD_MAX or size > _DATA_MAX:
        return None
    if not (seen or copied):
        return Inline(_parts(words, 0, (), _body(words, ()), b"", shared), (), 0)
    data = bytearray(size)
    for one, at in copies:
        data[at : at + len(one.data)] = one.data
    numbers = _numbers((*shared.const, *shared.writable))
    places = [
        *_seen_places(seen, shared, numbers),
        *((one.word, CALL_DATA, at) for one, at in copies),
    ]
    parts = _parts(words, 0, places, _body(words, places), bytes(data), shared)
    return Inline(parts, copies, size)


def kept(
    words: Words,
    seen: Sequence[Seen],
    copies: Sequence[tuple[Copied, int]],
    shared: Areas,
    address: int,
) -> list[Part]:
    """Return the messages of a call whose `copies` (of `laid_out`) lie in memory that the machine
    has from one call to the next, at `address` there. Its words are to fit (`fits`): those that
    point there are sent as what they are to be.
    """
    values = [*words.general, *words.vector, *words.stack]
    for one, at in copies:
        values[one.word] = address + at
    first, second = len(words.general), len(words.general) + len(words.vector)
    words = Words(words.function, values[:first], values[first:second], values[second:])
    places: Sequence[tuple[int, int, int]] = ()
    if seen:
        numbers = _numbers((*shared.const, *shared.writable))
        places = list(_seen_places(seen, shared, numbers))
    return _parts(words, 0, places, _body(words, places), b"", shared)


def fits(words: Words, seen: Sequence[Seen]) -> bool:
    """Whether the words of a call fit a payload, if what it copies is elsewhere."""
    count = len(words.general) + len(words.vector) + len(words.stack)
    return _HEAD.size + 8 * count + _PLACE.size * len(seen) <= PAYLOAD_MAX


def laid_out(copied: Sequence[Copied]) -> tuple[list[tuple[Copied, int]], int]:
    """Return each Copied and where it is to be in memory for them, and how much that is in all."""
    return _placed(copied, 0)


def spilled(
    words: Words, seen: Sequence[Seen], copied: Sequence[Copied], shared: Areas, scratch: Extent
) -> tuple[list[Part], Spill]:
    """Return the messages of a call that does not fit them, and what is put into `scratch`."""
    writable = [*shared.writable, scratch]
    numbers = _numbers((*shared.const, *writable))
    count = len(words.general) + len(words.vector) + len(words.stack)
    head = 8 * count + _PLACE.size * (len(seen) + len(copied))
    copies, size = _placed(copied, head)
    places = [
        *_seen_places(seen, shared, numbers),
        *((one.word, numbers[scratch], at) for one, at in copies),
    ]
    body = _body(words, places)
    shared = shared._replace(writable=writable)
    return _parts(words, _SPILLED, places, b"", b"", shared), Spill(body, copies, size)


def spilled_size(words: Words, seen: Sequence[Seen], copied: Sequence[Copied]) -> int:
    """Return how many bytes `spilled` needs."""
    count = len(words.general) + len(words.vector) + len(words.stack)
    return _placed(copied, 8 * count + _PLACE.size * (len(seen) + len(copied)))[1]


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


def _numbers(extents: Iterable[Extent]) -> dict[Extent, int]:
    return {extent: number for number, extent in enumerate(extents)}


def _seen_places(
    seen: Sequence[Seen], shared: Areas, numbers: dict[Extent, int]
) -> Iterator[tuple[int, int, int]]:
    for one, (extent, offset) in zip(seen, shared.where, strict=True):
        yield one.word, numbers[extent], offset


def _evened(words: Words) -> Words:
    """Return the words with one more on the stack, where nobody looks, if they are odd in number:
    so the data that follows them is aligned.
    """
    if (len(words.general) + len(words.vector) + len(words.stack)) % 2:
        return words._replace(stack=(*words.stack, 0))
    return words


def _body(words: Words, places: Sequence[tuple[int, int, int]]) -> bytes:
    values = (*words.general, *words.vector, *words.stack)
    body = struct.pack(f"<{len(values)}Q", *values) if values else b""
    for word, extent, offset in places:
        body += _PLACE.pack(word, extent, 0, 0, offset)
    return body


def _parts(
    words: Words,
    flags: int,
    places: Sequence[object],
    body: bytes,
    data: bytes,
    shared: Areas,
) -> list[Part]:
    counts = len(words.general), len(words.vector), len(places), len(words.stack), len(data)
    payload = _HEAD.pack(words.function, flags, *counts) + body + data
    if not (shared.const or shared.writable):
        return [Part(payload)]
    more = _HEAD.pack(0, _MORE, 0, 0, 0, 0, 0)
    if not shared.const:
        return [Part(payload, shared.writable, more=more)]
    if not shared.writable:
        return [Part(payload, shared.const, writable=False, more=more)]
    return [
        Part(more, shared.const, writable=False, more=more),
        Part(payload, shared.writable, more=more),
    ]

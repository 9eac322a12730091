"""Calls as messages: read again as guests/lib/sandbox reads them, they say what was meant."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, CallFlags
from vmm.sandbox import request
from vmm.sandbox.request import Copied, Seen, Words

PAGES = 40
AT = 0x1234_5000  # where the machine sees what is copied
ARENA = memoryview(bytearray(range(256)) * 40)
ARENA_AT = 0x7F00_0000_0010  # its address, it might be
word = st.integers(0, 2**64 - 1)


@st.composite
def copies(draw: st.DrawFn, index: int, const: bool) -> Copied:
    """Draw bytes of their own, or some that others may have as well."""
    if draw(st.booleans()):
        data = draw(st.binary(max_size=draw(st.sampled_from([8, 60, 9000]))))
        align = draw(st.sampled_from([16, 16, 64, PAGE_SIZE]))
        return Copied(index, memoryview(bytearray(data)), const, align)
    start = draw(st.integers(0, len(ARENA)))
    size = draw(st.integers(0, min(draw(st.sampled_from([8, 40, 9000])), len(ARENA) - start)))
    return Copied(index, ARENA[start : start + size], const, address=ARENA_AT + start)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Words, list[Seen], list[Copied]]:
    """Draw a call's words, and what some of them point to."""
    general, vector = draw(st.lists(word, max_size=6)), draw(st.lists(word, max_size=8))
    stack = draw(st.lists(word, max_size=draw(st.sampled_from([0, 3, 300]))))
    pointers = [
        *range(len(general)),
        *range(len(general) + len(vector), len(general + vector + stack)),
    ]
    chosen = draw(st.lists(st.sampled_from(pointers), unique=True, max_size=6)) if pointers else []
    seen: list[Seen] = []
    copied: list[Copied] = []
    for index in chosen:
        const = draw(st.booleans())
        if draw(st.booleans()):
            start = draw(st.integers(0, PAGES * PAGE_SIZE - 1))
            size = draw(st.integers(1, min(3 * PAGE_SIZE, PAGES * PAGE_SIZE - start)))
            seen.append(Seen(index, start, size, const))
        else:
            copied.append(draw(copies(index, const)))
    return Words(draw(word), general, vector, stack), seen, copied


class Reader:
    """What the machine makes of a message: words that point to its data are ("data", offset)."""

    def __init__(self, payload: bytes, memory: bytes) -> None:
        assert len(payload) <= abi.PAYLOAD_MAX
        head = abi.Call.from_buffer_copy(payload)
        body = payload[ctypes.sizeof(abi.Call) :]
        if head.flags & CallFlags.SPILLED:
            assert body == AT.to_bytes(8, "little")
            assert not head.data
            assert not head.places
            body = memory
        self.function = head.function
        self.counts = head.general, head.vector, head.stack
        count = sum(self.counts)
        self.words: list[Any] = [
            int.from_bytes(body[8 * i : 8 * i + 8], "little") for i in range(count)
        ]
        # The payload is aligned to 16 bytes, and data in it is to be.
        assert not head.data or count % 2 == 0
        self.data = body[8 * count :][: head.data]
        places = body[8 * count + head.data :]
        for at in range(0, head.places * ctypes.sizeof(abi.Place), ctypes.sizeof(abi.Place)):
            place = abi.Place.from_buffer_copy(places, at)
            self.words[place.word] = ("data", place.offset)


@given(calls())
def test_each_word_arrives_and_each_pointer_points_to_its_bytes(
    call: tuple[Words, list[Seen], list[Copied]],
) -> None:
    words, seen, copied = call
    shared = request.areas(seen)
    starts = {extent: (1 << 40) + n * (1 << 30) for n, (extent, _) in enumerate(shared.extents)}
    words = request.pointed(words, seen, shared, starts)
    laid, memory = request.laid_out(words, copied), b""
    asked = request.asked(words, laid, AT if laid.memory else 0)
    if laid.memory:
        filled = bytearray(laid.memory)
        filled[: len(asked.head)] = asked.head
        assert len(asked.head) == laid.words
        for one, at in laid.copies:
            assert at >= len(asked.head)
            assert one.address or at % one.align == 0
            filled[at : at + len(one.data)] = one.data
        assert laid.memory == max(len(filled), 1)
        memory = bytes(filled)
    reader = Reader(asked.payload, memory)
    assert reader.function == words.function
    assert len(reader.data) == laid.size
    general, vector, stack = reader.counts
    assert (general, vector) == (len(words.general), len(words.vector))
    assert stack in (len(words.stack), len(words.stack) + 1)
    copies = {one.word for one in copied}
    for index, value in enumerate([*words.general, *words.vector, *words.stack]):
        assert index in copies or reader.words[index] == value
    for one in seen:
        address = reader.words[one.word]
        ((extent, start),) = [(e, s) for e, s in starts.items() if s <= address < s + (1 << 30)]
        assert extent.page * PAGE_SIZE + address - start == one.start
        assert one.start + one.size <= extent.end * PAGE_SIZE
        assert dict(shared.extents)[extent] or one.const
    offsets = {}
    for copy in copied:
        word = reader.words[copy.word]
        where, offset = (reader.data, word[1]) if isinstance(word, tuple) else (memory, word - AT)
        offsets[copy.word] = offset
        assert where[offset : offset + len(copy.data)] == bytes(copy.data)
    for one, other in itertools.combinations(copied, 2):
        at, there = offsets[one.word], offsets[other.word]
        if one.address and other.address and meet(one, one.address, other, other.address):
            assert there - at == other.address - one.address
        else:
            assert not meet(one, at, other, there)


def meet(one: Copied, at: int, other: Copied, there: int) -> bool:
    """Whether bytes of one are bytes of the other's, too, by where these are."""
    return max(at, there) < min(at + len(one.data), there + len(other.data))


@given(calls())
def test_what_is_shared_is_what_is_pointed_to_and_read_only_where_all_of_it_is_const(
    call: tuple[Words, list[Seen], list[Copied]],
) -> None:
    _, seen, _ = call
    shared = dict(request.areas(seen).extents)
    assert all(a.end <= b.page for a, b in itertools.pairwise(shared))
    pages = {
        page
        for one in seen
        for page in range(one.start // PAGE_SIZE, -(-(one.start + one.size) // PAGE_SIZE))
    }
    assert {page for extent in shared for page in range(extent.page, extent.end)} == pages
    for extent, writable in shared.items():
        within = [one for one in seen if extent.page <= one.start // PAGE_SIZE < extent.end]
        assert writable != all(one.const for one in within)

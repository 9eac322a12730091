"""Calls as messages: read again as guests/lib/sandbox reads them, they say what was meant."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from vmm.endpoint.calling import Part
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, CallFlags
from vmm.memory.runs import Extent
from vmm.sandbox import request
from vmm.sandbox.request import Copied, Seen, Words

PAGES = 40
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
    """What the machine makes of the messages: addresses are (extent or data, offset)."""

    def __init__(self, parts: list[Part], spill: bytes) -> None:
        self.extents: list[tuple[Extent, bool]] = []
        for part in parts[:-1]:
            head = abi.Call.from_buffer_copy(part.payload)
            assert head.flags == CallFlags.MORE
            self.add(part)
        last = parts[-1]
        assert len(last.payload) <= abi.PAYLOAD_MAX
        head = abi.Call.from_buffer_copy(last.payload)
        body = last.payload[ctypes.sizeof(abi.Call) :]
        if head.flags & CallFlags.SPILLED:
            assert not body
            assert last.writable
            body = spill
        self.add(last)
        self.scratch = len(self.extents) - 1
        self.function = head.function
        count = head.general + head.vector + head.stack
        self.counts = head.general, head.vector, head.stack
        self.words: list[Any] = [
            int.from_bytes(body[8 * i : 8 * i + 8], "little") for i in range(count)
        ]
        # The payload is aligned to 16 bytes, and data in it is to be.
        assert head.flags & CallFlags.SPILLED or not head.data or count % 2 == 0
        body = body[8 * count :]
        for at in range(0, head.places * ctypes.sizeof(abi.Place), ctypes.sizeof(abi.Place)):
            place = abi.Place.from_buffer_copy(body, at)
            self.words[place.word] = (place.extent, place.offset)
        self.data = body[head.places * ctypes.sizeof(abi.Place) :]

    def add(self, part: Part) -> None:
        self.extents += [(extent, part.writable) for extent in part.extents]


@given(calls())
def test_each_word_arrives_and_each_pointer_points_to_its_bytes(
    call: tuple[Words, list[Seen], list[Copied]],
) -> None:
    words, seen, copied = call
    shared = request.areas(seen)
    inline, memory = request.inline(words, seen, copied, shared), b""
    if inline is not None:
        parts = inline.parts
    else:
        scratch = Extent(1000, -(-request.spilled_size(words, seen, copied) // PAGE_SIZE))
        parts, spill = request.spilled(words, seen, copied, shared, scratch)
        filled = bytearray(scratch.pages * PAGE_SIZE)
        filled[: len(spill.head)] = spill.head
        for one, at in spill.copies:
            assert at >= len(spill.head)
            assert one.address or at % one.align == 0
            filled[at : at + len(one.data)] = one.data
        assert spill.size <= len(filled)
        memory = bytes(filled)
    reader = Reader(parts, memory)
    assert reader.function == words.function
    general, vector, stack = reader.counts
    assert (general, vector) == (len(words.general), len(words.vector))
    assert stack in (len(words.stack), len(words.stack) + 1)
    pointed = {one.word for one in (*seen, *copied)}
    plain = [*words.general, *words.vector, *words.stack]
    for index, value in enumerate(plain):
        assert index in pointed or reader.words[index] == value
    for one in seen:
        number, offset = reader.words[one.word]
        extent, writable = reader.extents[number]
        assert extent.page * PAGE_SIZE + offset == one.start
        assert one.start + one.size <= extent.end * PAGE_SIZE
        assert writable or one.const
    for copy in copied:
        number, offset = reader.words[copy.word]
        where = reader.data if number == abi.CALL_DATA else memory
        assert number == abi.CALL_DATA or number == reader.scratch
        assert where[offset : offset + len(copy.data)] == bytes(copy.data)
    for one, other in itertools.combinations(copied, 2):
        at, there = reader.words[one.word][1], reader.words[other.word][1]
        if one.address and other.address and meet(one, one.address, other, other.address):
            assert there - at == other.address - one.address
        else:
            assert not meet(one, at, other, there)


def meet(one: Copied, at: int, other: Copied, there: int) -> bool:
    """Whether bytes of one are bytes of the other's, too, by where these are."""
    return max(at, there) < min(at + len(one.data), there + len(other.data))


@given(calls(), st.integers(1, 1 << 40))
def test_what_a_machine_keeps_seeing_is_pointed_to_by_address(
    call: tuple[Words, list[Seen], list[Copied]], page: int
) -> None:
    words, seen, copied = call
    shared, address = request.areas(seen), page * PAGE_SIZE
    copies, size = request.laid_out(copied)
    if not request.fits(words, seen):
        return
    parts = request.kept(words, seen, copies, shared, address)
    assert all(len(part.payload) <= abi.PAYLOAD_MAX for part in parts)
    reader = Reader(parts, b"")
    assert reader.counts == (len(words.general), len(words.vector), len(words.stack))
    pointed = {one.word for one in (*seen, *copied)}
    for index, value in enumerate([*words.general, *words.vector, *words.stack]):
        assert index in pointed or reader.words[index] == value
    for one in seen:
        number, offset = reader.words[one.word]
        assert reader.extents[number][0].page * PAGE_SIZE + offset == one.start
    for copy, at in copies:
        assert reader.words[copy.word] == address + at
        assert at + len(copy.data) <= size
        assert copy.address or at % copy.align == 0


@given(calls())
def test_what_is_shared_is_what_is_pointed_to_and_read_only_where_all_of_it_is_const(
    call: tuple[Words, list[Seen], list[Copied]],
) -> None:
    _, seen, _ = call
    shared = request.areas(seen)
    extents = sorted([*shared.const, *shared.writable])
    assert all(a.end <= b.page for a, b in itertools.pairwise(extents))
    pages = {
        page
        for one in seen
        for page in range(one.start // PAGE_SIZE, -(-(one.start + one.size) // PAGE_SIZE))
    }
    assert {page for extent in extents for page in range(extent.page, extent.end)} == pages
    for extent in extents:
        within = [one for one in seen if extent.page <= one.start // PAGE_SIZE < extent.end]
        assert (extent in shared.const) == all(one.const for one in within)

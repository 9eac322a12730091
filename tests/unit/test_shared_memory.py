"""Shared memory that changes while the monitor reads it: it is read once, and only that counts."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from unit.descriptors import request_of
from unit.exchange_scene import FRAMES, PAGES, Scene

from vmm.ferry import control, rings
from vmm.ferry.control import ControlStructure, Identity
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Doorbell, Hold, Operation, Status
from vmm.memory.region import Region
from vmm.memory.runs import Extent

pytestmark = pytest.mark.usefixtures("each_pool")

WINDOW = Region(abi.WINDOW_GPA, PAGES * PAGE_SIZE)
ENTRY = ctypes.sizeof(abi.Descriptor)
RING = slice(abi.Control.tx.offset, abi.Control.rx.offset)
IOV_MAX = 1024
DEADLINE = 30.0


def version(operation: int, *extents: Extent, **fields: int) -> abi.Descriptor:
    raw = abi.Descriptor(operation=operation, extent_count=len(extents), **fields)
    for place, extent in zip(raw.extents, extents, strict=False):
        place.gpa, place.pages = abi.WINDOW_GPA + extent.page * PAGE_SIZE, extent.pages
    return raw


@contextlib.contextmanager
def flipping(ring: memoryview, *versions: abi.Descriptor) -> Iterator[None]:
    """Let a thread fill a transmit ring with one version after the other, over and over.

    The kernel writes, IOV_MAX rings in each call, without Python's lock: really at any time.
    """
    times = IOV_MAX // len(versions)
    fd = os.memfd_create("versions", os.MFD_CLOEXEC)
    for _ in range(times):
        os.write(fd, b"".join(bytes(raw) * abi.TX_ENTRIES for raw in versions))
    targets = [ring] * (times * len(versions))
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            os.preadv(fd, targets, 0)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(fd)


# ---- Read once ----


class SpyStruct:
    """A struct.Struct that notes where it has read."""

    def __init__(self, inner: Any, reads: list[int]) -> None:
        self._inner, self._reads = inner, reads
        self.pack_into = inner.pack_into

    def unpack_from(self, memory: memoryview, offset: int) -> Any:
        self._reads.append(offset)
        return self._inner.unpack_from(memory, offset)


def test_each_descriptor_is_read_once_as_a_whole_and_nothing_else_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    copies: list[tuple[int, int]] = []
    pieces = rings._pieces

    def note_pieces(*what: int) -> list[tuple[int, int, slice]]:
        found = pieces(*what)
        copies.extend((start, end) for start, end, _ in found)
        return found

    for module, *names in (rings, "U32", "U64"), (control, "U32", "I32", "U64"):
        for name in names:
            monkeypatch.setattr(module, name, SpyStruct(getattr(module, name), reads))
    monkeypatch.setattr(rings, "_pieces", note_pieces)
    (own,) = scene.alloc(scene.a, 1)
    scene.put(scene.a, Operation.SEND, own, to=scene.b, payload=b"hello")
    scene.put(scene.a, Operation.ALLOC, Extent(-abi.WINDOW_GPA // PAGE_SIZE, 1))
    scene.put(scene.a, 0xFFFF)
    scene.put(scene.a, Operation.QUERY, Extent(0, 1))
    assert scene.exchange.transmit(scene.a) is Status.OK
    assert copies == [(RING.start, RING.start + 4 * ENTRY)]
    assert reads == [abi.Control.tx_head.offset]


@pytest.mark.parametrize("junk", [b"\0", b"\xff"])
def test_a_descriptor_that_changes_after_it_was_read_is_what_it_was(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    copy = ControlStructure.copy_descriptors

    def copy_and_change(structure: ControlStructure, indices: range) -> bytes:
        descriptors = copy(structure, indices)
        structure.memory[RING] = junk * (RING.stop - RING.start)
        return descriptors

    (own,) = scene.alloc(scene.a, 1)
    entry = scene.put(scene.a, Operation.LEND, own, to=scene.b, tag=5, length=9, payload=b"hello")
    monkeypatch.setattr(ControlStructure, "copy_descriptors", copy_and_change)
    scene.exchange.transmit(scene.a)
    (message,) = scene.b.queue
    assert (message.operation, message.sender, message.receiver) == (Operation.LEND, 1, 2)
    assert (message.tag, message.length, message.payload) == (5, 9, b"hello")
    assert (message.homes, scene.holds(scene.a, own)) == ((own,), [Hold.LENT])
    assert (entry.status, entry.message, entry.sender) == (Status.OK, message.number, 1)


# ---- Changed while it is read ----

HARMLESS = version(Operation.SEND, Extent(1, 2), Extent(5, 1), payload_length=3, tag=1)
HOSTILE = abi.Descriptor.from_buffer_copy(b"\xff" * ENTRY)
CROSSED = version(
    Operation.SHARE,
    *(Extent(index, 2) for index in range(abi.EXTENTS_MAX)),
    flags=abi.Flags.READONLY,
    payload_length=abi.PAYLOAD_MAX,
    length=1 << 40,
    tag=2,
)


@pytest.mark.parametrize("other", [HOSTILE, CROSSED], ids=["hostile", "crossed"])
def test_whatever_is_read_of_two_versions_is_a_request_within_bounds_or_a_refusal(
    other: abi.Descriptor,
) -> None:
    memory = memoryview(bytearray(CONTROL_BYTES))
    structure = ControlStructure(memory, Identity(1, "a", 3, Doorbell.PIO, 0, 0, 0, 0))
    copies = set()
    deadline = time.monotonic() + DEADLINE
    with flipping(memory[RING], HARMLESS, other):
        for index in itertools.count():
            copy = structure.copy_descriptors(range(index, index + 1))
            check_sound(abi.Descriptor.from_buffer_copy(copy))
            copies.add(copy)
            if index >= 10_000 and len(copies) > 1:
                break
            assert time.monotonic() < deadline, f"{index} copies, all the same"


@pytest.mark.parametrize("other", [HOSTILE, CROSSED], ids=["hostile", "crossed"])
def test_any_piece_of_one_version_in_the_other_is_a_request_within_bounds_or_a_refusal(
    other: abi.Descriptor,
) -> None:
    one, two = bytes(HARMLESS), bytes(other)
    for start, end in itertools.combinations(range(0, ENTRY + 1, 8), 2):
        for outer, inner in ((one, two), (two, one)):
            torn = outer[:start] + inner[start:end] + outer[end:]
            check_sound(abi.Descriptor.from_buffer_copy(torn))


def check_sound(copy: abi.Descriptor) -> None:
    """Check that a copy is a request for what it says, within bounds; or that it is refused."""
    try:
        request = request_of(copy)
    except Refusal as refusal:
        assert refusal.status < 0
        return
    assert len(request.spans) == copy.extent_count <= abi.EXTENTS_MAX
    assert len(request.payload) == copy.payload_length <= abi.PAYLOAD_MAX
    assert list(request.spans) == [(e.gpa, e.pages) for e in copy.extents[: copy.extent_count]]
    try:
        extents = request.extents(WINDOW)
    except Refusal:
        return
    pages = [page for extent in extents for page in range(extent.page, extent.end)]
    assert len(set(pages)) == len(pages)
    assert set(pages) <= set(range(PAGES))
    assert request.length <= len(pages) * PAGE_SIZE


def test_a_ring_that_changes_all_the_time_costs_nobody_a_page(no_leaks: None) -> None:
    alloc = abi.Descriptor(operation=Operation.ALLOC, extent_count=1)
    alloc.extents[0].pages = 2
    release = version(Operation.RELEASE, Extent(0, 1))
    with Scene(audit=True) as scene:
        (others,) = scene.alloc(scene.b, 3)
        answers: list[str] = []
        scene.trace.listen(lambda event: answers.append(event.kind))
        ring = memoryview(scene.memory["a"])[RING]
        full = abi.TX_ENTRIES
        deadline = time.monotonic() + DEADLINE
        with flipping(ring, alloc, release, HOSTILE):
            while len(answers) < 2_000 or not {"alloc", "release", "refuse"} <= set(answers):
                assert time.monotonic() < deadline
                scene.guest(scene.a).tx_head += full
                while (status := scene.exchange.transmit(scene.a)) is None:
                    pass  # what is left belongs into a turn of its own
                assert status is Status.OK
        scene.check()
        assert set(scene.holds(scene.a, Extent(0, PAGES))) <= {Hold.NONE, Hold.OWNED}
        assert scene.holds(scene.b, others) == [Hold.OWNED] * 3
        assert sum(scene.ledger.audit().values()) == FRAMES
        assert len(answers) == scene.guest(scene.a).tx_tail

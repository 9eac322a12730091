"""Whether the machines, the ledger and the kernel's own tables are as the protocol's model says."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvm.mappings import content, is_anonymous, unguarded
from kvm.protocol_model import Model
from kvm.protocol_pages import SEEN, Member
from kvm.protocol_world import HOST, World

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, PeerFlags
from vmm.memory.movers import MappedWindow, RemapWindow, SlotsWindow, Window

_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1


class Line(NamedTuple):
    """A line of /proc/self/maps; `page` is the first page of the file that is mapped."""

    low: int
    high: int
    permissions: str
    page: int
    name: str


def mappings() -> list[Line]:
    lines = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, offset, _, _, *name = line.split(maxsplit=5)
        low, high = addresses.split("-")
        page = int(offset, 16) // PAGE_SIZE
        lines.append(Line(int(low, 16), int(high, 16), permissions, page, "".join(name)))
    return lines


Shown = dict[int, tuple[int, bool]]  # place: frame, writable


def shown_in(window: Window, lines: list[Line]) -> Shown:
    """Return what can be reached through a window."""
    if isinstance(window, SlotsWindow):
        return {
            slot.page + i: (slot.frame + i, slot.writable)
            for slot in window._slots.values()
            for i in range(slot.pages)
        }
    assert isinstance(window, MappedWindow)
    start, end = window.mapping.address, window.mapping.address + window.mapping.size
    found: Shown = {}
    for line in lines:
        low, high = max(line.low, start), min(line.high, end)
        if low >= high:
            continue
        assert low == start, f"a hole in a window, below {line}"
        start = high
        if line.permissions in ("rw-p", "r--p"):
            if window.views is not None and not isinstance(window, RemapWindow):
                continue  # memory of nobody's
            assert isinstance(window, RemapWindow)
            page, pages = (low - window.mapping.address) // PAGE_SIZE, (high - low) // PAGE_SIZE
            shown = {
                run.page + i: (run.frame + i, line.permissions == "rw-p")
                for run in window._shown.within(page, pages)
                for i in range(run.pages)
            }
            ground = window.views is not None  # where there is memory of nobody's, too
            assert len(shown) == pages or ground, "a window shows more than it knows of"
            found |= shown
        elif line.permissions != "---p":
            assert "pageferry-pool" in line.name, f"a window shows something else: {line}"
            assert line.permissions in ("rw-s", "r--s"), line
            place = (low - window.mapping.address) // PAGE_SIZE
            frame = line.page + (low - line.low) // PAGE_SIZE
            writable = line.permissions == "rw-s"
            for at, count in unguarded(low, (high - low) // PAGE_SIZE):
                there = range(at, at + count)
                found |= {place + i: (frame + i, writable) for i in there}
    assert start == end, "a hole at the end of a window"
    return found


def expected_in(member: Member) -> Shown:
    return {
        place: (member.places[place].frame, member.hold(place) is not Hold.VIEWED)
        for place in member.with_hold(SEEN)
    }


def check_books(world: World, model: Model) -> None:
    """The ledger, the queues, and the mappings: without entering a machine."""
    found, expected = +Counter(world.monitor.audit()), +model.states()
    assert found == expected
    lines = mappings()
    for number, member in model.members.items():
        peer = world.peer(number)
        if number not in world.removed:
            shown, wanted = shown_in(peer.window, lines), expected_in(member)
            assert shown == wanted, f"{peer}: {sorted(shown.items() ^ wanted.items())}"
        assert peer.alive == member.alive
        if not member.alive:
            continue
        account = world.ledger.account(number)
        assert account.charged == model.charged(number)
        window = world.window(number)
        assert {place: hold for place, (_, hold) in window.items()} == {
            place: member.hold(place) for place in member.places
        }
        assert all(
            page is None or window[place][0] == page.frame for place, page in member.places.items()
        )
        for messages, real in ((member.queue, peer.queue), (member.ring, peer.untaken)):
            assert [(m.number, m.operation, m.status, m.sender, m.spans) for m in messages] == [
                (m.number, m.operation, m.status, m.sender, world.places_of(number, m.spans))
                for m in real
            ]


def check_memory(world: World, model: Model) -> None:
    """The pool's memory itself: each page has its word, and one physical page for all who see it;
    what is free reads as zeros.
    """
    for frame in range(world.frames):
        page = model.pages.get(frame)
        expected = bytes(PAGE_SIZE) if page is None else struct.pack("<Q", page.word)
        found = content(world.monitor._mover.pool, frame)
        assert found.startswith(expected), f"frame {frame}"
    physical = dict(_physical(world, model))
    assert len(set(physical.values())) == len(physical), "two frames are one physical page"


def moved_by_the_kernel() -> int:
    """How often the kernel has moved pages to make huge ones, or room for them, on this host."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return sum(int(counts.get(name, 0)) for name in ("pgmigrate_success", "thp_collapse_alloc"))


def _physical(world: World, model: Model) -> Iterator[tuple[int, int]]:
    """Yield frames that are seen, and the numbers of their physical pages, always the same ones
    but for those that the kernel has moved.

    Nothing without the privilege.
    """
    moves = moved_by_the_kernel()
    if moves != world.moves:
        world.moves = moves
        for page in model.pages.values():
            page.physical = None
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for frame, page in model.pages.items():
            anonymous = is_anonymous(world.monitor._mover.pool, frame)
            if page.anonymous and not anonymous:  # it has been shared: the one thing that copies
                page.physical = None
            assert page.anonymous in (None, True, anonymous)
            page.anonymous = anonymous
            if anonymous and not page.word:
                continue  # what nobody has written to is the kernel's page of zeros
            addresses = [] if anonymous else [world.view.address + frame * PAGE_SIZE]
            for number in (page.owner, *page.loans):
                if model.members[number].alive and page.hold_of(number) in SEEN:
                    place = page.loans[number].place if number != page.owner else page.place
                    addresses.append(world.peer(number).window.address(place))
            numbers = set()
            for address in addresses if anonymous else addresses[1:] and addresses:
                ctypes.string_at(address, 1)  # so that it is present
                (entry,) = struct.unpack("<Q", os.pread(pagemap.fileno(), 8, address // 512))
                if entry & _PRESENT and entry & _FRAME:
                    numbers.add(entry & _FRAME)
            if numbers:
                (physical,) = numbers
                if page.physical not in (None, physical):
                    time.sleep(0.1)  # it counts when it has moved
                    assert moved_by_the_kernel() != moves, "a page that moved was copied"
                page.physical = physical
                yield frame, physical


def check_tables(world: World, model: Model) -> None:
    """What machines are told of each other in their control structures."""
    for member in model.living():
        if member.number == HOST:
            continue
        memory = world.hands[member.number].machine.guest.memory
        start, count = abi.CONTROL_GPA + abi.Control.peers.offset, len(member.knows)
        data = memory.read(start, count * ctypes.sizeof(abi.Peer))
        entries = (abi.Peer * count).from_buffer_copy(data)
        assert {entry.id: entry.flags for entry in entries} == {
            number: _flags(member, model.members[number]) for number in member.knows
        }


def _flags(member: Member, other: Member) -> PeerFlags:
    flags = PeerFlags.SEND * (other.number in member.channels) | PeerFlags.ALIVE * other.alive
    return PeerFlags(flags | PeerFlags.ROOM * (other.alive and not other.full(member.number)))

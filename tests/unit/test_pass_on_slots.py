"""Pages from window to window where memslots change, and where they are made: a VM that refuses."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator
from typing import Any, cast

import pytest
from kvm.mappings import View, views
from unit.remap_scene import FRAMES, LARGE, PROT_NONE, read, seen, window_lines, write

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.kvm.uapi import KVM_MEM_READONLY
from vmm.memory.mapping import Mapping
from vmm.memory.movers import RemapWindow
from vmm.memory.movers.park import Park
from vmm.memory.movers.slots import PoolSlotsWindow

BASE = 1 << 32


class SlotTable:
    """A VM's memslots, by number: guest address, size, host address, flags. It may refuse calls."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int, int]] = {}
        self.calls = 0
        self.refused: set[int] = set()

    def set_user_memory_region(
        self, slot: int, gpa: int, size: int, address: int, flags: int = 0
    ) -> None:
        self.calls += 1
        if self.calls in self.refused:
            raise OSError(errno.ENOMEM, "refused by the test")
        if size:
            self.slots[slot] = gpa, size, address, flags
        else:
            del self.slots[slot]

    def check_extension(self, extension: int) -> int:
        return 0

    def as_vm(self) -> Vm:
        return cast(Vm, cast(Any, self))


# ---- Windows made of memslots ----


class Pair:
    """A window with a run of 16 pages from page 8 on, and an empty one."""

    def __init__(self, pool: Mapping) -> None:
        self.vm_a, self.vm_b = SlotTable(), SlotTable()
        self.a, self.b = (
            PoolSlotsWindow(vm.as_vm(), BASE, FRAMES * PAGE_SIZE, pool)
            for vm in (self.vm_a, self.vm_b)
        )
        self.a.show(8, 0, 16)
        self.vm_a.calls = 0

    def seen(self) -> tuple[list[View], list[View]]:
        return views(self.a, ()), views(self.b, ())


@pytest.fixture
def pair(no_leaks: None) -> Iterator[Pair]:
    with Mapping.anonymous(FRAMES * PAGE_SIZE) as pool:
        yield Pair(pool)


@pytest.mark.parametrize("writable", [True, False])
def test_slots_are_cut_in_one_vm_and_made_in_the_other(pair: Pair, writable: bool) -> None:
    ctypes.memset(pair.a.address(12), 7, PAGE_SIZE)
    before = pair.a.address(12)
    assert pair.a.pass_on(12, 4, 3, pair.b, 30, writable=writable)
    assert pair.seen() == (
        [View(8, 4, 0, True), View(15, 9, 7, True)],
        [View(30, 3, 4, writable)],
    )
    assert pair.b.address(30) == before
    (slot,) = pair.vm_b.slots.values()
    flags = 0 if writable else KVM_MEM_READONLY
    assert slot == (BASE + 30 * PAGE_SIZE, 3 * PAGE_SIZE, before, flags)
    assert sum(size for _, size, _, _ in pair.vm_a.slots.values()) == 13 * PAGE_SIZE


@pytest.mark.parametrize("at", [1, 2, 3])
def test_slots_that_cannot_be_cut_are_as_they_were(pair: Pair, at: int) -> None:
    before, backed = pair.seen(), sorted(pair.vm_a.slots.values())
    pair.vm_a.refused = {at}
    with pytest.raises(OSError, match="refused"):
        pair.a.pass_on(12, 4, 3, pair.b, 30)
    assert (pair.seen(), sorted(pair.vm_a.slots.values())) == (before, backed)
    assert (pair.vm_b.slots, pair.vm_b.calls) == ({}, 0)


def test_a_slot_that_cannot_be_made_leaves_pages_in_flight(pair: Pair) -> None:
    pair.vm_b.refused = {1}
    assert pair.a.pass_on(8, 0, 16, pair.b, 30) is False
    assert pair.seen() == ([], [])
    assert pair.vm_a.slots == pair.vm_b.slots == {}
    pair.b.show(30, 0, 16)
    assert pair.seen() == ([], [View(30, 16, 0, True)])


# ---- Windows whose memslots stay ----


@pytest.mark.parametrize("count", [2, 16], ids=["memfd", "anonymous"])
def test_what_a_vm_cannot_see_yet_is_in_one_window_or_in_none(no_leaks: None, count: int) -> None:
    """Its slot is made when a page first comes there, and may be refused."""
    vm, size = SlotTable(), FRAMES * PAGE_SIZE
    vm.refused = {1}
    with (
        contextlib.closing(Park(FRAMES, LARGE)) as park,
        contextlib.closing(RemapWindow(park, size)) as a,
        contextlib.closing(RemapWindow(park, size, BASE, vm.as_vm())) as b,
    ):
        a.show(0, 0, count)
        write(a, 0, count)
        before, brought = seen(a), False
        try:
            brought = a.pass_on(0, 0, count, b, 8)
        except OSError:
            assert seen(a) == before
        else:
            assert (brought, seen(a)) == (False, [])
            a.show(0, 0, count)
        assert (seen(b), window_lines(b), vm.slots) == ([], [PROT_NONE], {})
        assert read(a, 0, count) == list(range(1, count + 1))
        assert a.pass_on(0, 0, count, b, 8)
        assert (seen(a), seen(b)) == ([], [View(8, count, 0, True)])
        assert list(vm.slots.values()) == [(BASE, size, b.mapping.address, 0)]

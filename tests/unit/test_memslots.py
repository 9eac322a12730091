"""The memslots under a window: only where pages have been, and each once."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import Vm
from vmm.memory.memslots import CHUNK, MOST, WindowSlots

BASE, ADDRESS, FIRST = 1 << 32, 1 << 40, 1
PAGES = 2 * CHUNK + 512


class Recorder:
    """A VM that takes slots down, and may refuse one."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}
        self.refused: int | None = None

    def set_user_memory_region(self, slot: int, *where: int) -> None:
        if slot == self.refused:
            raise OSError(errno.ENOMEM, "no memory for a slot")
        assert slot not in self.slots
        self.slots[slot] = where


@pytest.fixture
def vm() -> Recorder:
    return Recorder()


@pytest.fixture
def slots(vm: Recorder) -> WindowSlots:
    return WindowSlots(cast(Vm, cast(Any, vm)), FIRST, BASE, PAGES, ADDRESS)


def slot(first: int, pages: int) -> tuple[int, int, int]:
    offset = first * PAGE_SIZE
    return BASE + offset, pages * PAGE_SIZE, ADDRESS + offset


def test_a_window_without_pages_has_no_slots(vm: Recorder, slots: WindowSlots) -> None:
    assert not vm.slots


def test_a_chunk_has_its_slot_from_its_first_page_on(vm: Recorder, slots: WindowSlots) -> None:
    slots.cover(5, 1)
    assert vm.slots == {1: slot(0, CHUNK)}
    slots.cover(0, CHUNK)
    assert len(vm.slots) == 1
    slots.cover(CHUNK - 1, 2)
    assert vm.slots[2] == slot(CHUNK, CHUNK)
    assert len(vm.slots) == 2


def test_the_last_slot_ends_with_the_window(vm: Recorder, slots: WindowSlots) -> None:
    slots.cover(PAGES - 1, 1)
    assert vm.slots == {3: slot(2 * CHUNK, 512)}
    slots.cover(0, PAGES)
    assert sum(size for _, size, _ in vm.slots.values()) == PAGES * PAGE_SIZE


def test_what_the_kernel_refuses_can_be_tried_again(vm: Recorder, slots: WindowSlots) -> None:
    vm.refused = 2
    with pytest.raises(OSError, match="no memory for a slot"):
        slots.cover(0, PAGES)
    assert list(vm.slots) == [1]
    vm.refused = None
    slots.cover(0, PAGES)
    assert list(vm.slots) == [1, 2, 3]


@pytest.mark.parametrize("pages", [MOST * CHUNK, MOST * CHUNK + 512, 256 << 18, (256 << 18) - 512])
def test_no_window_needs_more_slots_than_an_old_kernel_has(vm: Recorder, pages: int) -> None:
    slots = WindowSlots(cast(Vm, cast(Any, vm)), FIRST, BASE, pages, ADDRESS)
    slots.cover(0, pages)
    assert len(vm.slots) <= MOST
    place = BASE
    for start, size, address in vm.slots.values():
        assert (start, address - ADDRESS, size % (2 << 20)) == (place, start - BASE, 0)
        place += size
    assert place == BASE + pages * PAGE_SIZE

"""Arrays that have the rest of a huge page: what is shared beyond them is nobody else's; zeros."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm.sandbox_books import tidy

from vmm import CallCrash, Sandbox
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.memory.runs import Extent
from vmm.sandbox import request
from vmm.sandbox.arguments import address_of
from vmm.sandbox.request import Seen

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
Elf = Callable[[str], Path]

SIZE = (1 << 20) + 100
END = -(-SIZE // PAGE_SIZE) * PAGE_SIZE
VALUE = 7


@pytest.fixture
def lib(sandboxed: Elf) -> Iterator[Sandbox]:
    with Sandbox(sandboxed("cheats"), pool="64M", timeout=20) as lib:
        lib._rooms._roomy = True  # where there are no huge pages as well: it is the same to see
        yield lib
        lib.monitor.audit(mappings=True)


def shared(lib: Sandbox, *arrays: Any) -> list[Extent]:
    """Return what calls with these arrays share, in pages from the first one of each."""
    base, found = lib.monitor.host.peer.window.region.base, []
    for array in arrays:
        start = address_of(memoryview(array)) - base
        areas = request.areas([Seen(0, start, array.nbytes, const=False)], lib._rooms.end)
        ((extent, writable),) = areas.extents
        assert writable
        found.append(Extent(extent.page - start // PAGE_SIZE, extent.pages))
    return found


@pytest.mark.parametrize(
    ("size", "pages"),
    [
        ((512 << 10) - 1, 128),
        (512 << 10, 512),
        (SIZE, 512),
        (LARGE_PAGE - 1, 512),
        (LARGE_PAGE, 512),
        (LARGE_PAGE + (128 << 10) - 1, 544),
        (LARGE_PAGE + (128 << 10), 1024),
    ],
)
def test_which_arrays_have_room(lib: Sandbox, size: int, pages: int) -> None:
    array = lib.empty(size, np.uint8)
    assert shared(lib, array) == [Extent(0, pages)]
    assert lib.finds_beyond(array, 0, pages * PAGE_SIZE) == 0


def test_what_is_beyond_is_the_arrays_and_no_more(lib: Sandbox) -> None:
    others = [lib.array(np.ones(SIZE, np.uint8)) for _ in range(2)]
    array = lib.array(np.ones(SIZE, np.uint8))
    others += [lib.array(np.ones(SIZE, np.uint8)) for _ in range(2)]
    assert lib.finds_beyond(array, 0, LARGE_PAGE) == SIZE
    for at in (-1, LARGE_PAGE):
        with pytest.raises(CallCrash):
            lib.finds_beyond(array, at, at + 1)
    assert all(other.all() for other in others)


def test_a_part_is_shared_as_it_is(lib: Sandbox) -> None:
    array = lib.empty(SIZE, np.uint8)
    assert shared(lib, array[:5000], array[PAGE_SIZE:], array[:-PAGE_SIZE]) == [
        Extent(0, 2),
        Extent(0, END // PAGE_SIZE - 1),
        Extent(0, END // PAGE_SIZE - 1),
    ]
    with pytest.raises(CallCrash):
        lib.finds_beyond(array[:5000], 2 * PAGE_SIZE, 2 * PAGE_SIZE + 1)


def test_what_a_machine_has_left_there_another_does_not_find(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("cheats"), pool="64M", timeout=20) as lib:
        lib._rooms._roomy = True
        array = lib.empty(SIZE, np.uint8)
        lib.pokes_beyond(array, END, LARGE_PAGE, VALUE)
        assert lib.finds_beyond(array, END, LARGE_PAGE) == LARGE_PAGE - END  # its own
        with pytest.raises(CallCrash):
            lib.pokes(8, 1, 0)
        assert lib.finds_beyond(array, END, LARGE_PAGE) == 0
        lib.pokes_beyond(array, END, LARGE_PAGE, VALUE)
        with pytest.raises(CallCrash):
            lib.pokes(8, 1, 0)
        assert lib.finds_beyond(array, END, LARGE_PAGE) == 0


def test_two_machines_that_have_it_in_turn_find_zeros(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("cheats"), pool="64M", timeout=20, machines=2) as lib:
        lib._rooms._roomy = True
        array, crew = lib.empty(SIZE, np.uint8), lib._crew
        for _ in range(3):
            for worker in crew.workers:
                with crew.bound(worker):
                    assert lib.finds_beyond(array, END, LARGE_PAGE) == 0
                    lib.pokes_beyond(array, END, LARGE_PAGE, VALUE)


def test_with_fresh_each_call_finds_zeros(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("cheats"), pool="64M", timeout=20, fresh=True) as lib:
        lib._rooms._roomy = True
        array = lib.empty(SIZE, np.uint8)
        for _ in range(2):
            lib.pokes_beyond(array, END, LARGE_PAGE, VALUE)
            assert lib.finds_beyond(array, END, LARGE_PAGE) == 0
            assert lib.finds_beyond(array, 0, SIZE) == 0


def test_what_may_only_be_read_is_not_written_beyond_either(lib: Sandbox) -> None:
    array = lib.empty(SIZE, np.uint8)
    with pytest.raises(CallCrash):
        lib.pokes_beyond_const(array, END, END + 1, VALUE)
    assert lib.finds_beyond(array, 0, LARGE_PAGE) == 0


def test_when_it_is_freed_its_room_is_and_others_have_none_of_it(lib: Sandbox) -> None:
    lib.fills(bytearray(1000), 1000, VALUE)
    before = lib.monitor.audit()
    array = lib.empty(SIZE, np.uint8)
    lib.pokes_beyond(array, 0, LARGE_PAGE, VALUE)
    assert lib.monitor.audit()["free"] == before["free"] - 512
    del array
    tidy(lib)
    assert lib.monitor.audit() == before
    lib._rooms._roomy = False
    arrays = [lib.empty(SIZE, np.uint8) for _ in range(20)]  # where it was, too
    assert {extent.pages for extent in shared(lib, *arrays)} == {END // PAGE_SIZE}
    lib._rooms._roomy = True
    del arrays
    gc.collect()
    array = lib.empty(SIZE, np.uint8)
    assert lib.finds_beyond(array, 0, LARGE_PAGE) == 0


def test_no_array_has_room_where_half_of_the_memory_would_be_gone(lib: Sandbox) -> None:
    arrays = [lib.empty(SIZE, np.uint8) for _ in range(30)]
    with_room = sum(extent.pages == 512 for extent in shared(lib, *arrays))
    assert 8 <= with_room <= 16
    for array in arrays:
        lib.fills(array, SIZE, VALUE)
    assert all((array == VALUE).all() for array in arrays)


def test_slices_of_it_keep_the_memory_and_calls_work(lib: Sandbox) -> None:
    array = lib.empty(SIZE, np.uint8)
    part = array[SIZE // 2 :]
    del array
    tidy(lib)
    lib.fills(part, part.size, VALUE)
    assert (part == VALUE).all()

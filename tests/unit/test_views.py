"""What is given out of memory, who still has it, and what a window keeps of it when it closes."""

from __future__ import annotations

import ctypes
import gc
import sys

import pytest

from vmm.endpoint import exporter, exporter311
from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.mapping import Mapping
from vmm.memory.movers import MemfdMover
from vmm.memory.runs import Extent
from vmm.memory.views import Export, Outlook, Views

MEMORY = ctypes.create_string_buffer(b"0123456789")


class Buffer:
    """What gives out views, as far as `Views` knows it."""

    def __init__(self, views: Views, page: int, pages: int) -> None:
        self.calls: list[str] = []
        self.place = Extent(page, pages)
        self.outlook = views.note(self, self.place)
        views.watch(self, self.place)

    def give(self) -> Export:
        export = Export(ctypes.addressof(MEMORY), 10, writable=True)
        self.outlook.exports.append(export)
        return export

    def _disarm(self) -> None:
        self.calls.append("disarm")

    def _refresh(self) -> None:
        self.calls.append("refresh")


def kept(views: Views) -> list[tuple[Extent, Outlook, bool]]:
    return [tuple(piece) for piece in views.stop()]  # type: ignore[misc]


@pytest.mark.parametrize("writable", [True, False])
def test_an_export_is_alive_as_long_as_anybody_has_a_part_of_it(writable: bool) -> None:
    export = Export(ctypes.addressof(MEMORY), 10, writable=writable)
    assert not export.alive
    for make in (memoryview, lambda v: v, lambda v: memoryview(v)[2:3], lambda v: iter(v)):
        held = make(export.view)
        assert export.alive, make
        del held
        assert not export.alive, make
    assert (export.view.readonly, bytes(export.view)) == (not writable, b"0123456789")
    with memoryview(export.view):
        assert export.alive
    cycle: list[object] = [memoryview(export.view)]
    cycle.append(cycle)
    del cycle
    assert export.alive
    gc.collect()
    assert not export.alive
    assert not export.released
    export.view.release()
    assert export.released


def test_what_is_kept_is_what_is_viewed_or_whose_buffer_there_is() -> None:
    views = Views()
    a, b, c = Buffer(views, 0, 4), Buffer(views, 8, 2), Buffer(views, 20, 1)
    view = memoryview(b.give().view)
    outlooks = [a.outlook, b.outlook, c.outlook]
    c.give()
    del b, c
    assert kept(views) == [(Extent(0, 4), outlooks[0], False), (Extent(8, 2), outlooks[1], True)]
    assert a.calls == ["disarm"]
    del view
    assert kept(views) == [(Extent(0, 4), outlooks[0], False)]
    assert [outlook.wanted for outlook in outlooks] == [True, False, False]


def test_where_two_have_been_the_one_that_is_viewed_is_kept() -> None:
    views = Views()
    sent, here = Buffer(views, 0, 10), Buffer(views, 2, 3)
    view = memoryview(here.give().view)
    assert [(extent, viewed) for extent, _, viewed in kept(views)] == [
        *((Extent(0, 2), False), (Extent(2, 3), True), (Extent(5, 5), False)),
    ]
    assert sent.outlook.wanted
    del view


def test_buffers_are_told_of_changes_at_their_own_pages_only() -> None:
    views = Views()
    a, b, c = (Buffer(views, page, 4) for page in (0, 10, 20))
    for page, count, told in (
        (3, 1, [a]),
        (4, 6, []),
        (4, 7, [b]),
        (0, 99, [a, b, c]),
        (23, 5, [c]),
    ):
        views.changed(page, count)
        assert [buffer for buffer in (a, b, c) if buffer.calls] == told
        for buffer in (a, b, c):
            buffer.calls.clear()
    views.unwatch(a.place)
    views.unwatch(a.place)
    del b
    views.changed(0, 99)
    assert (a.calls, c.calls, views.watched) == ([], ["refresh"], True)
    views.unwatch(c.place)
    views.changed(0, 99)
    assert not views.watched


def test_what_is_hidden_in_the_hosts_window_is_memory_of_nobodys() -> None:
    mover = MemfdMover(8)
    window = mover.host_window(8 * PAGE_SIZE)
    try:
        window.show(2, 0, 3)
        ctypes.memset(window.address(2), 7, 3 * PAGE_SIZE)
        window.hide(3, 1)
        places = [ctypes.string_at(window.address(page), 1) for page in range(8)]
        assert places == [b"\0", b"\0", b"\7", b"\0", b"\7", b"\0", b"\0", b"\0"]
        ctypes.memset(window.address(3), 9, PAGE_SIZE)
        window.show(3, 1, 1)
        assert ctypes.string_at(window.address(3), 1) == b"\7"
        assert [sight[:3] for sight in window.seen() or ()] == [(2, 3, 0)]
    finally:
        window.close()
        mover.close()


def test_where_the_host_does_not_let_there_be_so_much_a_window_is_inaccessible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = mapping._mmap

    def strict(address: int, size: int, protection: int, *how: int) -> int:
        if protection == mapping._READ_WRITE and how[0] & 0x20:  # private and anonymous
            ctypes.set_errno(12)
            return mapping._MAP_FAILED
        return int(made(address, size, protection, *how))

    monkeypatch.setattr("vmm.kvm.given.libc_mmap", strict)
    with Mapping.viewable(4 * PAGE_SIZE) as window:
        assert not window.ground
        with pytest.raises(OSError, match="reading at"):
            mapping.touch(window.address)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="buffers are asked for each view there")
def test_before_312_what_does_not_work_as_it_should_is_not_used() -> None:
    assert exporter.ARMED
    assert exporter311._works(exporter311.Exporter)

    class GivesNothing(exporter311.Exporter):  # type: ignore[misc]
        def _arm(self, export: Export) -> None:
            pass

    class AlwaysGives(exporter311.Exporter):  # type: ignore[misc]
        def _disarm(self) -> None:
            pass

    assert not exporter311._works(GivesNothing)
    assert not exporter311._works(AlwaysGives)

"""Pages that are hidden where they are mapped, while guests write to them."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvm.guest_code import NO_RAM, PATIENCE, machine, user_mode
from kvm.puppets import Puppet, Span, Stage, spans_of
from tests_support import sized

from vmm import Monitor
from vmm.guest.abi import PAGE_SIZE, Status
from vmm.kvm import MemoryFault, Vcpu
from vmm.memory.guards import guards_work
from vmm.memory.mapping import Mapping
from vmm.memory.movers import MappedWindow, Mover
from vmm.memory.pool import PagePool

pytestmark = pytest.mark.skipif(not guards_work(), reason="this kernel has no guards of memfds")

PAGES = 8
SECONDS = sized(3.0, 20.0)

# mov rbx, NO_RAM; 1: inc qword [rbx]; add rbx, 4096; cmp rbx, end; jb 1b; jmp to the beginning
ROUNDS = (
    b"\x48\xc7\xc3" + struct.pack("<I", NO_RAM) + b"\x48\xff\x03"
    b"\x48\x81\xc3\x00\x10\x00\x00\x48\x81\xfb"
    + struct.pack("<I", NO_RAM + PAGES * PAGE_SIZE)
    + b"\x72\xed\xeb\xe4"
)


class Counting(threading.Thread):
    """A vCPU that counts in each page in turn, and tries again where it may not."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__()
        self._vcpu = vcpu
        self.over = threading.Event()
        self.refused = 0
        self.stopped: object = None

    def run(self) -> None:
        while not self.over.is_set():
            exit_ = self._vcpu.run()
            if not isinstance(exit_, MemoryFault):
                self.stopped = exit_
                return
            self.refused += 1
            time.sleep(0.0002)


@pytest.fixture
def pool() -> Iterator[PagePool]:
    pool = PagePool(PAGES)
    yield pool
    pool.close()


def test_a_running_guest_loses_a_hidden_page_at_once_and_finds_it_as_it_was(
    pool: PagePool,
) -> None:
    """Two machines count in pages of their own, in windows that change all the time. What one has
    counted in a page is what it has counted in the one before, or one less.
    """
    rng = random.Random(1)
    pools = [pool, PagePool(PAGES)]
    with machine() as one, machine() as two:
        threads, windows, eyes = [], [], []
        for made, frames in zip((one, two), pools, strict=True):
            window = MappedWindow(frames, PAGES * PAGE_SIZE, NO_RAM, made.vm, guarded=True)
            for page in range(PAGES):
                window.show(page, page, 1)
            user_mode(made, ROUNDS)
            threads.append(Counting(made.vcpu))
            windows.append(window)
            eyes.append(Mapping.shared(PAGES * PAGE_SIZE, frames.fd))
        views = [eye.view().cast("Q") for eye in eyes]
        for thread in threads:
            thread.start()
        hidden, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end and all(thread.stopped is None for thread in threads):
            which, page = rng.randrange(2), rng.randrange(PAGES)
            window, view = windows[which], views[which]
            window.hide(page, 1)
            assert pools[which].guarded.pieces
            before = view[page * PAGE_SIZE // 8]
            time.sleep(rng.choice((0, 0, 0.0005, 0.003)))
            assert view[page * PAGE_SIZE // 8] == before
            window.show(page, page, 1)
            hidden += 1
            if not hidden % 7:
                time.sleep(0.003)
        for thread in threads:
            thread.over.set()
        for window in windows:
            window.hide(0, PAGES)
        for thread in threads:
            thread.join(PATIENCE)
            assert (thread.is_alive(), thread.stopped) == (False, None)
            assert thread.refused > 1
        for view in views:
            counts = [view[page * PAGE_SIZE // 8] for page in range(PAGES)]
            assert counts[0] > 0
            assert counts == sorted(counts, reverse=True)
            assert counts[0] - counts[-1] <= 1
            view.release()
        assert hidden > sized(20, 2)
    for thing in (*eyes, *windows, pools[1]):
        thing.close()


@pytest.mark.parametrize("mover", ["memfd", "remap"])
def test_a_loan_that_goes_and_comes_changes_no_mapping_and_is_hidden_all_the_same(
    mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mover, "guards_beside", 0)
    with Monitor(mover=mover, pool="16M", audit=True, console=lambda name, line: None) as monitor:
        a, b = Stage(monitor, "ab").puppets
        (own,) = a.alloc(1)
        guarded = monitor._mover.pool.guarded.pieces
        seen = set()
        for number in range(6):
            a.write(own.gpa, number)
            assert a.lend(b, own) is Status.OK
            (loan,) = spans_of(b.one())
            assert b.read(loan.gpa) == [number]
            assert address(a, own) in guarded
            assert address(b, loan) not in guarded
            b.write(loan.gpa, 100 + number)
            assert b.give_back(a, loan) is Status.OK
            a.inbox()
            assert a.read(own.gpa) == [100 + number]
            assert address(a, own) not in guarded
            assert address(b, loan) in guarded
            seen.add(Path("/proc/self/maps").read_text().count("pageferry-pool"))
        assert len(seen) == 1
        assert a.lend(b, own) is Status.OK
        b.inbox()
        assert address(a, own) in guarded
        a.touch(own.gpa, "write")


def address(puppet: Puppet, span: Span) -> int:
    window = puppet.machine.peer.window
    return window.address((span.gpa - puppet.base) // PAGE_SIZE)

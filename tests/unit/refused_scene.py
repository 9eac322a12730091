"""Machines without KVM whose windows are every mover's, on a host that refuses any of its calls."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from kvm.mappings import content, is_anonymous, mappings, views
from unit.exchange_scene import Scene
from unit.test_pass_on_slots import SlotTable

from vmm.ferry.control import ControlStructure, Identity
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE
from vmm.ferry.sight import check_mappings
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Doorbell
from vmm.memory import mapping
from vmm.memory.mapping import Mapping
from vmm.memory.movers import MappedWindow, RemapWindow, SlotsWindow, Window
from vmm.memory.movers.park import Park
from vmm.memory.movers.park_slots import ParkSlotsWindow
from vmm.memory.movers.slots import PoolSlotsWindow
from vmm.memory.pool import PagePool

FRAMES, PAGES = 28, 40
MOVERS = ("memfd", "slots", "remap", "remap, split", "park", "both")
_CALLS = ("show", "hide", "move", "protect", "empty", "store", "punch", "guard", "unguard")


class Refuser:
    """Refuses some of the kernel calls by which windows and the pool change, once it is armed.

    at      which, by their order
    after   from which on all of them, if any
    split   whether anonymous memory is moved page by page, as if each were a mapping of its own
    """

    def __init__(
        self, at: Sequence[int] = (), after: int | None = None, split: bool = False
    ) -> None:
        self._at, self._after, self._split = at, after, split
        self.armed = False
        self.calls = 0

    def __repr__(self) -> str:
        return f"{self._at}, from {self._after} on, of {self.calls}"

    def call(self) -> None:
        """Refuse this call, if it is to be."""
        if not self.armed:
            return
        index, self.calls = self.calls, self.calls + 1
        if index in self._at or (self._after is not None and index >= self._after):
            raise OSError(errno.ENOMEM, "refused by the test")

    def wrap(self, name: str) -> Callable[..., object]:
        """Return a call of `mapping` that asks first."""
        real = getattr(mapping, name)

        def ask(*args: int, **options: object) -> object:
            if name == "move" and self._split and args[2] > PAGE_SIZE:
                raise OSError(errno.EFAULT, "several mappings")
            try:
                self.call()
            except OSError:
                if name in ("guard", "unguard"):  # these say so
                    return False
                raise
            return real(*args, **options)

        return ask


class RefusingSlots(SlotTable):
    """A VM's memslots, which may be refused."""

    def __init__(self, refuser: Refuser) -> None:
        super().__init__()
        self._refuser = refuser

    def set_user_memory_region(
        self, slot: int, gpa: int, size: int, address: int, flags: int = 0
    ) -> None:
        self._refuser.call()
        if not size and slot not in self.slots:
            raise OSError(errno.EINVAL, "there is none")
        super().set_user_memory_region(slot, gpa, size, address, flags)


class RefusedScene(Scene):
    """A scene of one mover's windows: "park" is of memslots over the park, "both" has them too."""

    def __init__(self, mover: str, refuser: Refuser) -> None:
        self.refuser = refuser
        self._mover = mover
        self._whole: Mapping | None = None
        self.vms: dict[str, RefusingSlots] = {}
        self.condemned: list[str] = []
        super().__init__(depth=8)

    def make_pool(self, frames: int) -> PagePool:  # type: ignore[override]
        return PagePool(FRAMES) if self._mover in ("memfd", "slots") else Park(FRAMES, large=1)

    def _window(self, number: int, name: str) -> Window:
        size = PAGES * PAGE_SIZE
        self.vms[name] = RefusingSlots(self.refuser)
        vm = self.vms[name].as_vm()
        if self._mover == "memfd":
            return MappedWindow(
                self.pool, size, abi.WINDOW_GPA, vm, guarded=self.pool.guarded.works
            )
        if self._mover == "slots":
            if self._whole is None:
                self._whole = Mapping.shared(FRAMES * PAGE_SIZE, self.pool.fd)
                self._stack.callback(self._whole.close)
            return PoolSlotsWindow(vm, abi.WINDOW_GPA, size, self._whole, self.pool.journal)
        assert isinstance(self.pool, Park)
        if self._mover == "park" or (self._mover == "both" and number % 2 == 0):
            return ParkSlotsWindow(self.pool, vm, abi.WINDOW_GPA, size)
        return RemapWindow(self.pool, size, abi.WINDOW_GPA, vm)

    def peer(self, number: int, name: str, depth: int = 8) -> Peer:
        window = self._window(number, name)
        window.on_spoiled = lambda: self.condemned.append(name)
        self._stack.callback(window.close)
        self.memory[name] = bytearray(CONTROL_BYTES)
        identity = Identity(number, name, 3, Doorbell.PIO, abi.WINDOW_GPA, PAGES, 0, 0)
        control = ControlStructure(memoryview(self.memory[name]), identity)
        peer = Peer(number, name, window, depth, control)
        self.exchange.join(peer, quota=FRAMES, pieces=PAGES)
        return peer

    # ---- What became of it ----

    def check(self) -> None:
        """Assert that nobody reaches more than the ledger says, nor less, but who is to be stopped;
        and the books of memslots are the kernel's.
        """
        self.ledger.audit()
        check_mappings(self.ledger, [peer for peer in self.peers if peer.alive])
        lines = mappings()
        for peer in self.peers:
            if isinstance(peer.window, SlotsWindow):
                self._check_slots(peer, peer.window)
            if peer.alive and not peer.window.spoiled:
                seen = {
                    view.page + index: (view.frame + index, view.writable)
                    for view in views(peer.window, lines)
                    for index in range(view.pages)
                }
                assert seen == self.allowed(peer), peer
                self._touch(peer)

    def _check_slots(self, peer: Peer, window: SlotsWindow) -> None:
        own = {
            (abi.WINDOW_GPA + s.page * PAGE_SIZE, s.pages * PAGE_SIZE, s.address)
            for s in window._slots.values()
        }
        assert own == {slot[:3] for slot in self.vms[peer.name].slots.values()}

    def allowed(self, peer: Peer) -> dict[int, tuple[int, bool]]:
        """Return what a peer is to see, by page: the frame, and whether it may write."""
        writable = READABLE - {abi.Hold.VIEWED}
        return {
            run.page + index: (run.frame + index, run.hold in writable)
            for run in self.ledger.window(peer.number)
            if run.hold in READABLE
            for index in range(run.pages)
        }

    def _touch(self, peer: Peer) -> None:
        """Look at every page that a peer sees: it is the frame's memory, wherever that is."""
        for page, (frame, _) in self.allowed(peer).items():
            assert self.read(peer, page) == self.written(frame)

    def owned(self) -> dict[int, bytes]:
        """What is written in each frame that is not free."""
        free = {
            f
            for r in (*self.ledger.pool.runs, *self.ledger.aside)
            for f in range(r.first, r.first + r.pages)
        }
        found = {frame: self.written(frame) for frame in set(range(FRAMES)) - free}
        return {frame: data for frame, data in found.items() if data}

    def written(self, frame: int) -> bytes:
        """Return what is written in a frame."""
        if isinstance(self.pool, Park) and self.pool.wary and not is_anonymous(self.pool, frame):
            return os.pread(self.pool.fd, 16, frame * PAGE_SIZE).rstrip(b"\0")
        return content(self.pool, frame, 16).rstrip(b"\0")

    def end(self) -> None:
        """Let everybody die; whoever comes next finds zeros, as large as it likes."""
        for peer in self.peers:
            if peer.alive:
                while not self.exchange.leave(peer):
                    pass
        new = self.peer(9, "z")
        self.peers = [new]
        self.exchange.operations.grant(new, [FRAMES])
        assert self.ledger.audit()["owned"] == FRAMES
        for page in range(new.window.region.pages):
            if page in self.allowed(new):
                assert ctypes.string_at(new.window.address(page), PAGE_SIZE) == bytes(PAGE_SIZE)
        self.check()


@pytest.fixture
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Scenes of few frames, whose calls of `mapping` are asked for."""
    from unit import exchange_scene

    monkeypatch.setattr(exchange_scene, "FRAMES", FRAMES)
    monkeypatch.setattr(exchange_scene, "PAGES", PAGES)
    return monkeypatch


def refusing(refuser: Refuser, patch: pytest.MonkeyPatch) -> None:
    """Let the calls of `mapping` ask the refuser."""
    for name in _CALLS:
        patch.setattr(mapping, name, refuser.wrap(name))

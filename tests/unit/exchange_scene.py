"""Peers with real windows in this process, on a host that refuses what a test wants refused."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from typing import Self

from kvm.mappings import mappings, views
from vmm.ferry.books import Bond
from vmm.ferry.control import CONTROL_BYTES, ControlStructure, Identity
from vmm.ferry.exchange import Exchange
from vmm.ferry.frames import Frames
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Message, Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.ferry.runs import Extent, Run
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Doorbell, Hold, Operation, Status
from vmm.memory.movers import MappedWindow
from vmm.memory.pool import PagePool
from vmm.trace import Event, Trace

FRAMES = 64
PAGES = 96  # of each window
TOKEN = 16  # bytes that tell whose a page was first

Mapped = dict[int, tuple[int, bool]]  # by page: frame, writable


class RefusingHost:
    """Refuses those of its calls that `plan` says, by their order, once it is armed; no others.

    taken   what it did
    """

    def __init__(self, plan: Sequence[bool] = ()) -> None:
        self.plan = plan
        self.armed = False
        self.taken: list[bool] = []

    def call(self) -> None:
        if not self.armed:
            return
        index = len(self.taken)
        self.taken.append(index < len(self.plan) and self.plan[index])
        if self.taken[-1]:
            raise OSError(errno.ENOMEM, "refused by the test")


def every_way(attempt: Callable[[tuple[bool, ...]], Sequence[bool]]) -> int:
    """Call `attempt` with each plan of refusals that makes a difference, none at all first.

    It returns what the host did; what comes after the plan's end is tried the other way too.
    """
    plans: list[tuple[bool, ...]] = [()]
    for count, plan in enumerate(plans, 1):  # which grows meanwhile
        taken = attempt(plan)
        assert tuple(taken[: len(plan)]) == plan
        plans += [(*taken[:index], True) for index in range(len(plan), len(taken))]
    return count


class FragileWindow(MappedWindow):
    """A window that asks the host first."""

    def __init__(self, pool: PagePool, host: RefusingHost) -> None:
        super().__init__(pool, PAGES * PAGE_SIZE, abi.WINDOW_GPA)
        self._host = host

    def show(self, page: int, frame: int, count: int, *, writable: bool = True) -> None:
        self._host.call()
        super().show(page, frame, count, writable=writable)

    def hide(self, page: int, count: int) -> None:
        self._host.call()
        super().hide(page, count)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All that an operation may change, by peer."""

    windows: dict[str, tuple[Run, ...]]
    mapped: dict[str, Mapped]
    queues: dict[str, tuple[Message, ...]]
    untaken: dict[str, tuple[Message, ...]]
    accounts: dict[str, tuple[int, int, int]]
    memory: dict[str, bytes]
    bonds: tuple[Bond, ...]
    free: tuple[Frames, ...]
    contents: dict[int, bytes]


class Scene:
    """Machines a, b and c, all channels between them but those from c; and d, who has every other
    frame, so that no two free frames are adjacent.
    """

    def __init__(self, plan: Sequence[bool] = (), *, depth: int = 8, audit: bool = False) -> None:
        self.host = RefusingHost(plan)
        self.woken: list[str] = []
        self.events: list[Event] = []
        self._stack = contextlib.ExitStack()
        self.pool = PagePool(FRAMES)
        self._stack.callback(self.pool.close)
        self.ledger = Ledger(FRAMES)
        self.trace = Trace()
        self.exchange = Exchange(
            self.ledger, self.pool, self.trace, lambda peer: self.woken.append(peer.name), audit=audit
        )
        self.memory: dict[str, bytearray] = {}
        self.a, self.b, self.c, self.d = (
            self.peer(number, name, depth) for number, name in enumerate("abcd", 1)
        )
        self.peers = [self.a, self.b, self.c, self.d]
        for sender, receiver in ((self.a, self.b), (self.b, self.a), (self.a, self.c), (self.b, self.c)):
            self.exchange.roster.connect(sender, receiver)
        every = self.exchange.operations.grant(self.d, [1] * FRAMES)
        self.exchange.operations.release(self.d, every[1::2])

    def peer(self, number: int, name: str, depth: int = 8) -> Peer:
        """Make a machine and let it join."""
        window = FragileWindow(self.pool, self.host)
        self._stack.callback(window.close)
        self.memory[name] = bytearray(CONTROL_BYTES)
        identity = Identity(number, name, 3, Doorbell.PIO, abi.WINDOW_GPA, PAGES, 0, 0)
        control = ControlStructure(memoryview(self.memory[name]), identity)
        peer = Peer(number, name, window, depth, control)
        self.exchange.join(peer, quota=FRAMES, pieces=PAGES)
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # ---- What peers do ----

    def listen(self) -> list[Event]:
        """Collect the events from now on."""
        self.trace.listen(self.events.append)
        return self.events

    def alloc(self, peer: Peer, *counts: int) -> list[Extent]:
        """Give a peer pages, and write into each whose it is."""
        extents = self.exchange.operations.grant(peer, counts)
        for extent in extents:
            for page in range(extent.page, extent.end):
                self.write(peer, page, f"{peer.name} {page}".encode())
        return extents

    def write(self, peer: Peer, page: int, data: bytes) -> None:
        """Let a peer write to a page that it sees."""
        ctypes.memmove(peer.window.address(page), data, len(data))

    def request(self, operation: Operation, *extents: Extent, to: Peer | int = 0, **fields: object) -> Request:
        """Make a request; `to` is a peer or its number."""
        receiver = to.number if isinstance(to, Peer) else to
        spans = tuple(Span(abi.WINDOW_GPA + e.page * PAGE_SIZE, e.pages) for e in extents)
        return Request(receiver=receiver, spans=spans, operation=operation, **fields)  # type: ignore[arg-type]

    def ask(self, peer: Peer, operation: Operation, *extents: Extent, to: Peer | int = 0, **fields: object) -> Answer:
        """Let a peer ask the exchange for an operation."""
        request = self.request(operation, *extents, to=to, **fields)
        return self.exchange.serve(peer, lambda: request)

    def done(self, peer: Peer, operation: Operation, *extents: Extent, to: Peer | int = 0, **fields: object) -> Answer:
        """Let a peer ask for what is done."""
        answer = self.ask(peer, operation, *extents, to=to, **fields)
        assert answer.status is Status.OK
        return answer

    def take(self, peer: Peer) -> list[Extent]:
        """Let a peer take a message, as the host does; return where its pages are."""
        message = self.exchange.take(peer)
        assert message is not None
        return extents_of(message)

    def took(self, peer: Peer) -> None:
        """Let a machine move its tail past all that is in its receive ring."""
        shared = abi.Control.from_buffer(self.memory[peer.name])
        shared.rx_tail = shared.rx_head

    def pass_on(self, sender: Peer, operation: Operation, *extents: Extent, to: Peer, **fields: object) -> list[Extent]:
        """Send, lend or share, and let the receiver take it; return where the pages are there."""
        self.done(sender, operation, *extents, to=to, **fields)
        return self.take(to)

    # ---- What became of it ----

    def holds(self, peer: Peer, *extents: Extent) -> list[Hold]:
        """What the pages of extents are to a peer, page by page."""
        return [
            self.ledger.describe(peer.number, Extent(page, 1)).hold
            for extent in extents
            for page in range(extent.page, extent.end)
        ]

    def contents(self) -> dict[int, bytes]:
        """What is written in each frame that is not free; those that are free read as zeros."""
        found = {}
        free = {frame for run in self.ledger.pool.runs for frame in range(run.first, run.end)}
        for frame in range(FRAMES):
            data = os.pread(self.pool.fd, TOKEN, frame * PAGE_SIZE).rstrip(b"\0")
            if data:
                assert frame not in free, f"frame {frame} is free, and holds {data!r}"
                found[frame] = data
        return found

    def mapped(self) -> dict[str, Mapped]:
        """What the kernel says that each peer's window shows."""
        lines = mappings()
        return {
            peer.name: {
                view.page + index: (view.frame + index, view.writable)
                for view in views(peer.window, lines)
                for index in range(view.pages)
            }
            for peer in self.peers
        }

    def check(self) -> None:
        """Assert that the ledger is sound, and that windows show what it says, and nothing else."""
        self.ledger.audit()
        self.contents()
        mapped = self.mapped()
        for peer in self.peers:
            if peer.alive:
                allowed = {
                    run.page + index: (run.frame + index, run.hold in WRITABLE)
                    for run in self.ledger.window(peer.number)
                    if run.hold in READABLE
                    for index in range(run.pages)
                }
                assert mapped[peer.name] == allowed, peer

    def snapshot(self) -> Snapshot:
        """All that an operation may change."""
        alive = [peer for peer in self.peers if peer.alive]
        accounts = {p.name: self.ledger.account(p.number) for p in alive}
        return Snapshot(
            windows={p.name: self.ledger.window(p.number) for p in alive},
            mapped=self.mapped(),
            queues={p.name: tuple(p.queue) for p in alive},
            untaken={p.name: tuple(p.untaken) for p in alive},
            accounts={n: (a.charged, a.quota, len(a.window)) for n, a in accounts.items()},
            memory={name: bytes(memory) for name, memory in self.memory.items()},
            bonds=tuple(self.ledger._bonds),
            free=self.ledger.pool.runs,
            contents=self.contents(),
        )

    def recover(self) -> None:
        """Let every owner reclaim what is LENT to nobody: all of it is to be had."""
        for peer in self.peers:
            for bond in [b for b in self.ledger._bonds if b.owner == peer.number and not b.borrowers]:
                self.done(peer, Operation.RECLAIM, bond.place.extent)
        assert all(bond.borrowers for bond in self.ledger._bonds)
        self.check()


def extents_of(message: Message) -> list[Extent]:
    """Where a message's pages are in its receiver's window."""
    return [Extent((s.gpa - abi.WINDOW_GPA) // PAGE_SIZE, s.pages) for s in message.spans]

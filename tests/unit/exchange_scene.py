"""Machines without KVM: peers with real windows in this process, and control structures."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

from kvm.mappings import content, mappings, views
from unit.refusing_host import RefusingHost, fragile_window, make_fragile

from vmm.ferry.books import Bond
from vmm.ferry.control import ControlStructure, Identity
from vmm.ferry.events import Event, Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.ledger import Ledger
from vmm.ferry.message import Answer, Message, Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.rules import READABLE, WRITABLE
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Doorbell, Hold, Operation, Status
from vmm.memory.frames import Frames
from vmm.memory.pool import PagePool
from vmm.memory.runs import Extent, Run

FRAMES = 80
PAGES = 96  # of each window
TOKEN = 16  # bytes that tell whose a page was first

Mapped = dict[int, tuple[int, bool]]  # by page: frame, writable


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

    make_pool: ClassVar[Callable[[int], PagePool]] = PagePool

    def __init__(self, plan: Sequence[bool] = (), *, depth: int = 8, audit: bool = False) -> None:
        self.host = RefusingHost(plan)
        self.woken: list[str] = []
        self.events: list[Event] = []
        self._stack = contextlib.ExitStack()
        self.pool = self.make_pool(FRAMES)
        self._stack.callback(self.pool.close)
        make_fragile(self.pool, self.host)
        self.ledger = Ledger(FRAMES, journal=self.pool.journal)
        self.trace = Trace()
        self.exchange = Exchange(
            self.ledger,
            self.pool,
            self.trace,
            lambda peer: self.woken.append(peer.name),
            audit=audit,
        )
        self.memory: dict[str, bytearray] = {}
        self.a, self.b, self.c, self.d = (
            self.peer(number, name, depth) for number, name in enumerate("abcd", 1)
        )
        self.peers = [self.a, self.b, self.c, self.d]
        for sender, receiver in (
            (self.a, self.b),
            (self.b, self.a),
            (self.a, self.c),
            (self.b, self.c),
        ):
            self.exchange.roster.connect(sender, receiver)
        every = self.exchange.operations.grant(self.d, [1] * FRAMES)
        self.exchange.operations.release(self.d, every[1::2])

    def peer(self, number: int, name: str, depth: int = 8) -> Peer:
        """Make a machine and let it join."""
        window = fragile_window(self.pool, self.host, PAGES)
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

    def join_frames(self) -> None:
        """Let d give up what is between free frames."""
        held = self.ledger.window(self.d.number)
        self.exchange.operations.release(self.d, [run.extent for run in held])

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

    def read(self, peer: Peer, page: int) -> bytes:
        """Return what a peer reads at the beginning of a page that it sees."""
        return ctypes.string_at(peer.window.address(page), TOKEN).rstrip(b"\0")

    def request(
        self, operation: Operation, *extents: Extent, to: Peer | int = 0, **fields: object
    ) -> Request:
        """Make a request; `to` is a peer or its number."""
        receiver = to.number if isinstance(to, Peer) else to
        spans = tuple(Span(abi.WINDOW_GPA + e.page * PAGE_SIZE, e.pages) for e in extents)
        return Request(receiver=receiver, spans=spans, operation=operation, **fields)  # type: ignore[arg-type]

    def serve(self, peer: Peer, request: Request) -> Answer:
        """Let the exchange do what a peer asks for, in as many slices as it takes."""
        while (answer := self.exchange.serve(peer, lambda: request)) is None:
            pass
        return answer

    def ask(
        self,
        peer: Peer,
        operation: Operation,
        *extents: Extent,
        to: Peer | int = 0,
        **fields: object,
    ) -> Answer:
        """Let a peer ask the exchange for an operation."""
        request = self.request(operation, *extents, to=to, **fields)
        return self.serve(peer, request)

    def ask_alloc(self, peer: Peer, *counts: int) -> Answer:
        """Let a peer ask for pages, an extent for each count."""
        spans = tuple(Span(0, count) for count in counts)
        request = Request(spans=spans, operation=Operation.ALLOC)
        return self.serve(peer, request)

    def done(
        self,
        peer: Peer,
        operation: Operation,
        *extents: Extent,
        to: Peer | int = 0,
        **fields: object,
    ) -> Answer:
        """Let a peer ask for what is done."""
        answer = self.ask(peer, operation, *extents, to=to, **fields)
        assert answer.status is Status.OK
        return answer

    def take(self, peer: Peer) -> list[Extent]:
        """Let a peer take a message, as the host does; return where its pages are."""
        message = self.exchange.take(peer)
        assert message is not None
        return extents_of(message)

    def guest(self, peer: Peer) -> abi.Control:
        """Return a machine's control structure, as it has it itself."""
        return abi.Control.from_buffer(self.memory[peer.name])

    def put(
        self,
        peer: Peer,
        operation: int,
        *extents: Extent,
        to: Peer | int = 0,
        payload: bytes = b"",
        **fields: int,
    ) -> abi.Descriptor:
        """Let a machine put a descriptor into its transmit ring; return that."""
        guest = self.guest(peer)
        raw = abi.Descriptor(
            operation=operation,
            status=Status.PENDING,
            receiver=to.number if isinstance(to, Peer) else to,
            extent_count=len(extents),
            payload_length=len(payload),
            **fields,
        )
        for place, extent in zip(raw.extents, extents, strict=False):
            place.gpa, place.pages = abi.WINDOW_GPA + extent.page * PAGE_SIZE, extent.pages
        raw.payload[: len(payload)] = payload
        entry = guest.tx[guest.tx_head % abi.TX_ENTRIES]
        ctypes.memmove(ctypes.addressof(entry), bytes(raw), ctypes.sizeof(raw))
        guest.tx_head += 1
        return entry

    def took(self, peer: Peer) -> None:
        """Let a machine move its tail past all that is in its receive ring."""
        self.guest(peer).rx_tail = self.guest(peer).rx_head

    def pass_on(
        self, sender: Peer, operation: Operation, *extents: Extent, to: Peer, **fields: object
    ) -> list[Extent]:
        """Send, lend or share, and let the receiver take it; return where the pages are there."""
        self.done(sender, operation, *extents, to=to, **fields)
        return self.take(to)

    def enter(self, peer: Peer) -> int:
        """Let one who may have waited run again, as its driver does; return what it has to take."""
        pending = self.exchange.deliver(peer)
        assert pending is not None
        peer.idle = False
        return pending

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
            data = content(self.pool, frame, TOKEN).rstrip(b"\0")
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
            bonds=tuple(self.ledger.bonds_by_frame),
            free=self.ledger.pool.runs,
            contents=self.contents(),
        )

    def recover(self) -> None:
        """Let every owner reclaim what is LENT to nobody: all of it is to be had."""
        for peer in self.peers:
            for bond in [
                b for b in self.ledger.bonds_by_frame if b.owner == peer.number and not b.borrowers
            ]:
                self.done(peer, Operation.RECLAIM, bond.place.extent)
        assert all(bond.borrowers for bond in self.ledger.bonds_by_frame)
        self.check()

    def end(self) -> None:
        """Let everybody die: all of it is free, and reads as zeros."""
        for peer in self.peers:
            if peer.alive:
                while not self.exchange.leave(peer):
                    pass
        assert self.ledger.audit()["free"] == FRAMES
        assert self.contents() == {}


def extents_of(message: Message) -> list[Extent]:
    """Where a message's pages are in its receiver's window."""
    return [Extent((s.gpa - abi.WINDOW_GPA) // PAGE_SIZE, s.pages) for s in message.spans]


def queued(peer: Peer) -> Message:
    """Return the one message that waits for a peer."""
    (message,) = peer.queue
    return message


def told(peer: Peer) -> list[tuple[Operation, Status]]:
    """Return what waits for a peer, and how it went."""
    return [(message.operation, message.status) for message in peer.queue]

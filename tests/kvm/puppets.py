"""Machines that do what a test says, step by step, on the real device: tests/guests/puppet.c."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Collection, Iterable
from functools import cache
from typing import NamedTuple

from guest_elfs import build_test_guests

from vmm import Machine, Monitor
from vmm.endpoint import Buffer
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Flags, Hold, Operation, PeerFlags, Status
from vmm.memory.runs import Run

ORDER, DONE = 0x6F72646572, 0x646F6E65
TRANSMIT, READ, WRITE, EXIT, IDLE, SPIN, DIRECT, WAIT, ROOM = range(1, 10)
DESK, TAKE, GATHER, SCATTER, REPLY, FLOOD, SYSTEM = range(10, 17)
KEPT = 512
_PATIENCE = 60  # seconds for one order


class Desk(ctypes.LittleEndianStructure):
    """struct desk of puppet.c."""

    _fields_ = (
        ("result", ctypes.c_int64),
        ("kept", ctypes.c_uint64),
        ("descriptors", abi.Descriptor * abi.TX_ENTRIES),
        ("words", ctypes.c_uint64 * 1024),
        ("messages", abi.Descriptor * KEPT),
        ("served", ctypes.c_uint64),
        ("next", ctypes.c_uint64 * 3),
    )


_elfs = cache(build_test_guests)  # which looks for what has changed


class Span(NamedTuple):
    """An extent as a descriptor has it."""

    gpa: int
    pages: int


def descriptor(
    operation: int,
    receiver: int = 0,
    *spans: tuple[int, int],
    payload: bytes = b"",
    **fields: int,
) -> abi.Descriptor:
    """Make a descriptor as a guest would; `fields` are set as they are, also to nonsense."""
    made = abi.Descriptor(
        operation=operation,
        receiver=receiver,
        status=Status.PENDING,
        extent_count=len(spans),
        payload_length=len(payload),
    )
    for extent, (gpa, pages) in zip(made.extents, spans, strict=False):
        extent.gpa, extent.pages = gpa, pages
    ctypes.memmove(made.payload, payload, len(payload))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def spans_of(message: abi.Descriptor) -> list[Span]:
    """Return the extents of a descriptor."""
    return [Span(e.gpa, e.pages) for e in message.extents[: message.extent_count]]


class Puppet:
    """One machine, and what a test can tell it to do. Orders run the monitor until it is done."""

    elf, usual = "puppet.elf", {"window": "2M", "memory": "4M"}

    def __init__(self, monitor: Monitor, name: str, **options: object) -> None:
        elf = _elfs() / self.elf
        options = {**self.usual, **options}
        self.monitor = monitor
        self.machine: Machine = monitor.spawn(elf, name=name, **options)  # type: ignore[arg-type]
        self.seen = 0
        self._desk = 0

    def boot(self) -> None:
        """Run it until it waits for orders."""
        message = self._reply(0)
        (self._desk,) = struct.unpack("<Q", message)

    @property
    def number(self) -> int:
        """Its id."""
        return self.machine.number

    @property
    def name(self) -> str:
        """Its name."""
        return self.machine.name

    @property
    def base(self) -> int:
        """The first address of its window."""
        return self.machine.window.base

    def page(self, index: int) -> int:
        """Return the address of a page of its window."""
        return self.base + index * PAGE_SIZE

    @property
    def alive(self) -> bool:
        """Whether it has not stopped."""
        return self.machine.peer.alive

    # ---- Orders ----

    def _reply(self, tag: int = DONE) -> bytes:
        """Run until it has answered. Everything else that is for the host is left in the queue."""
        self.monitor.run(_PATIENCE)
        assert self.machine.fault is None, self.machine.fault
        queue = self.monitor.host.peer.queue
        message = next(m for m in queue if m.sender == self.number and m.tag == tag)
        queue.withdraw(message)
        return message.payload

    def done(self) -> bool:
        """Whether it has answered an order, and nobody has looked."""
        queue = self.monitor.host.peer.queue
        return any(m.sender == self.number and m.tag == DONE for m in queue)

    def send_order(self, order: int, count: int = 0, address: int = 0, value: int = 0) -> None:
        """Give an order without waiting for it."""
        mask = (1 << 64) - 1
        payload = struct.pack("<IIQQ", order, count, address & mask, value & mask)
        self.monitor.host.send(self.machine, payload=payload, tag=ORDER)

    def _order(self, order: int, count: int = 0, address: int = 0, value: int = 0) -> int:
        self.send_order(order, count, address, value)
        self._reply()
        return int(self.desk.result)

    @property
    def desk(self) -> Desk:
        """A copy of its desk."""
        size = ctypes.sizeof(Desk)
        return Desk.from_buffer_copy(self.machine.guest.memory.read(self._desk, size))

    def ask(self, *descriptors: abi.Descriptor) -> list[abi.Descriptor]:
        """Transmit descriptors with one doorbell; return them as they were answered."""
        self.start(*descriptors)
        return self.answers(len(descriptors))

    def start(self, *descriptors: abi.Descriptor) -> None:
        """Begin with that, to ask for the `answers` later."""
        start = self._desk + Desk.descriptors.offset
        self.machine.guest.memory.write(start, b"".join(bytes(d) for d in descriptors))
        self.send_order(TRANSMIT, len(descriptors))

    def answers(self, count: int) -> list[abi.Descriptor]:
        """Return the descriptors of the transmission before, as they were answered."""
        self._reply()
        return list(self.desk.descriptors[:count])

    def ask_before(self, buffer: Buffer, *descriptors: abi.Descriptor) -> list[abi.Descriptor]:
        """The same, while a host's buffer is on its way: its receive ring is full until then.

        Its queue has to be longer than the ring.
        """
        self.start(*descriptors)
        for _ in range(abi.RX_ENTRIES - 1):
            self.monitor.host.send(self.machine)
        self.monitor.host.send(self.machine, buffer)
        return self.answers(len(descriptors))

    def do(
        self, operation: int, receiver: Puppet | int = 0, *spans: tuple[int, int], **fields: object
    ) -> Status:
        """Do one operation; return its status."""
        number = receiver if isinstance(receiver, int) else receiver.number
        made = descriptor(operation, number, *spans, **fields)  # type: ignore[arg-type]
        return Status(self.ask(made)[0].status)

    def alloc(self, *counts: int) -> list[Span]:
        """Allocate extents, which must succeed."""
        made = descriptor(Operation.ALLOC, 0, *[(0, count) for count in counts])
        (answer,) = self.ask(made)
        assert answer.status == Status.OK, Status(answer.status)
        return spans_of(answer)

    def send(self, to: Puppet, *spans: tuple[int, int], **fields: object) -> Status:
        """SEND extents."""
        return self.do(Operation.SEND, to, *spans, **fields)

    def lend(
        self, to: Puppet, *spans: tuple[int, int], writable: bool = True, **fields: object
    ) -> Status:
        """LEND extents."""
        return self.do(Operation.LEND, to, *spans, flags=_flags(writable), **fields)

    def share(
        self, to: Puppet, *spans: tuple[int, int], writable: bool = True, **fields: object
    ) -> Status:
        """SHARE extents."""
        return self.do(Operation.SHARE, to, *spans, flags=_flags(writable), **fields)

    def give_back(self, to: Puppet | int, *spans: tuple[int, int], **fields: object) -> Status:
        """RETURN extents."""
        return self.do(Operation.RETURN, to, *spans, **fields)

    def reclaim(self, *spans: tuple[int, int]) -> Status:
        """RECLAIM extents."""
        return self.do(Operation.RECLAIM, 0, *spans)

    def release(self, *spans: tuple[int, int]) -> Status:
        """RELEASE extents."""
        return self.do(Operation.RELEASE, 0, *spans)

    def exchange(self, to: Puppet, *spans: tuple[int, int], **fields: object) -> Status:
        """EXCHANGE extents."""
        return self.do(Operation.EXCHANGE, to, *spans, **fields)

    def query(self, *spans: tuple[int, int]) -> abi.Answer:
        """QUERY an extent, or none."""
        (answer,) = self.ask(descriptor(Operation.QUERY, 0, *spans))
        assert answer.status == Status.OK
        return abi.Answer.from_buffer_copy(bytes(answer.payload))

    def read(self, gpa: int, pages: int = 1) -> list[int]:
        """Read the first word of pages, which it must be able to."""
        self._order(READ, pages, gpa)
        return list(self.desk.words[:pages])

    def write(self, gpa: int, value: int, pages: int = 1) -> None:
        """Write value, value + 1, ... into the first word of pages, which it must be able to."""
        self._order(WRITE, pages, gpa, value)

    def direct(self, gpa: int, pages: int, attributes: int) -> int:
        """Ring a DIRECT hypercall."""
        return self._order(DIRECT, pages, gpa, attributes)

    def wait(self, wait_for: int, peer: int = 0, timeout_us: int = 0, unseen: int = 0) -> Status:
        """Ring WAIT, with so many notices not seen; the order itself is not what it waits for."""
        return Status(self._order(WAIT, timeout_us, peer, wait_for | unseen << 32))

    def reply(self, index: int, word: int) -> Status:
        """Let the library reply to the message of this index (`seen`, for the next) with a word."""
        return Status(self._order(REPLY, 0, index, word))

    def give_up(self, operation: Operation, holds: Collection[Hold]) -> None:
        """RECLAIM or RELEASE all that is one of these to it, if it is alive."""
        runs = [run for run in self.held() if run.hold in holds] if self.alive else []
        spans = [Span(self.page(run.page), run.pages) for run in runs]
        for first in range(0, len(spans), abi.EXTENTS_MAX):
            assert self.do(operation, 0, *spans[first : first + abi.EXTENTS_MAX]) is Status.OK

    # ---- Orders that it does not answer ----

    def exit(self, code: int = 0) -> None:
        """Let it exit."""
        self.send_order(EXIT, value=code)
        self.monitor.run(_PATIENCE)
        assert self.machine.exit_code == code

    def touch(self, gpa: int, access: str) -> None:
        """Let it read or write a page that it may not, and be stopped for exactly that."""
        self.send_order({"read": READ, "write": WRITE}[access], 1, gpa)
        self.monitor.run(_PATIENCE)
        self.was_stopped(gpa, access)

    def was_stopped(self, gpa: int, access: str) -> None:
        """Assert that it has been stopped for that."""
        fault = self.machine.fault
        assert fault is not None, f"{self.name} could {access} {gpa:#x}"
        assert (fault.kind, fault.access, fault.address) == ("access", access, gpa), fault

    def idle(self) -> None:
        """Let it wait for a notice, taking no message, until `awake`."""
        self.send_order(IDLE)
        self.monitor.run(_PATIENCE)

    def awake(self) -> None:
        """End that with a notice."""
        self.monitor.notice(self.machine, 1)
        self._reply()

    # ---- What it has seen ----

    def inbox(self) -> list[abi.Descriptor]:
        """Let it take what waits for it; return the messages that have come since the last time."""
        self._order(READ)
        desk = self.desk
        new = [desk.messages[index % KEPT] for index in range(self.seen, desk.kept)]
        self.seen = desk.kept
        return new

    def one(self) -> abi.Descriptor:
        """Return the one message that has come."""
        (message,) = self.inbox()
        return message

    def held(self) -> tuple[Run, ...]:
        """Return what the ledger says that its window holds."""
        return self.monitor._exchange.ledger.window(self.number)

    def holds(self, gpa: int) -> Hold:
        """Return what a page is to it."""
        return Hold(self.query((gpa, 1)).hold)

    def peer_flags(self, other: Puppet) -> PeerFlags:
        """Return what its peer table says of another."""
        return PeerFlags(self.entry(other).flags)

    def entry(self, other: Puppet) -> abi.Peer:
        """Return a copy of its peer table's entry for another."""
        control = self.control()
        entries = control.peers[: control.peer_count]
        return next(entry for entry in entries if entry.id == other.number)

    def control(self) -> abi.Control:
        """Return a copy of its control structure."""
        return abi.Control.from_buffer_copy(
            self.machine.guest.memory.read(abi.CONTROL_GPA, ctypes.sizeof(abi.Control))
        )


class LinuxPuppet(Puppet):
    """The same as a program for Linux, which can be told to ask the system for something, too."""

    elf = "linux/puppet.elf"
    usual = {"window": "2M", "memory": "16M", "stack": "256K"}  # noqa: RUF012

    def system(self, number: int, *words: int) -> int:
        """Make a system call; return what it returns."""
        values = struct.pack(f"<{len(words)}Q", *words).ljust(6 * 8, b"\0")
        self.machine.guest.memory.write(self._desk + Desk.words.offset, values)
        return self._order(SYSTEM, number)


def _flags(writable: bool) -> int:
    return 0 if writable else Flags.READONLY


class Stage:
    """Puppets that are connected, each with each, and what could have changed between them."""

    def __init__(self, monitor: Monitor, names: Iterable[str], **options: object) -> None:
        self.monitor = monitor
        self.puppets = [Puppet(monitor, name, **options) for name in names]
        for index, a in enumerate(self.puppets):
            for b in self.puppets[index + 1 :]:
                monitor.connect(a.machine, b.machine)
        for puppet in self.puppets:
            puppet.boot()

    def add(self, name: str, **options: object) -> Puppet:
        """Return one puppet more, connected with all that are alive."""
        puppet = Puppet(self.monitor, name, **options)
        for other in self.puppets:
            if other.alive:
                self.monitor.connect(puppet.machine, other.machine)
        puppet.boot()
        self.puppets.append(puppet)
        return puppet

    def clear(self) -> None:
        """Let all who are alive give up what they have, and forget what they have seen."""
        self.monitor.run(_PATIENCE)
        for operation, holds in (
            (Operation.RECLAIM, (Hold.SHARED, Hold.LENT)),
            (Operation.RELEASE, (Hold.OWNED, Hold.REVOKED)),
        ):
            for puppet in self.puppets:
                puppet.give_up(operation, holds)
        for puppet in self.puppets:
            if puppet.alive:
                assert not puppet.held()
                puppet.seen = int(puppet.desk.kept)

    def snapshot(self) -> object:
        """All that an operation could have changed, in the ledger, the queues and the mappings."""
        ledger = self.monitor._exchange.ledger
        peers = [puppet.machine.peer for puppet in self.puppets if puppet.alive]
        return (
            ledger.audit(),
            ledger.pool.runs,
            [ledger.window(peer.number) for peer in peers],
            [ledger.account(peer.number).charged for peer in peers],
            [len(peer.queue) for peer in peers],
            list(ledger.bonds_by_frame),
        )


def refused(
    stage: Stage,
    puppet: Puppet,
    operation: int,
    receiver: Puppet | int,
    *spans: tuple[int, int],
    **fields: object,
) -> Status:
    """Return the status that an operation is refused with, having changed nothing."""
    before = stage.snapshot()
    status = puppet.do(operation, receiver, *spans, **fields)
    assert status is not Status.OK
    assert stage.snapshot() == before
    return status

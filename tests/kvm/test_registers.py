"""Operations in the registers of a hypercall, where the doorbell is one: no descriptor at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kvm.puppets import Puppet, Stage, spans_of

from vmm import Monitor
from vmm.engine.guest import HYPERCALLS
from vmm.ferry import slices
from vmm.ferry.message import Request
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import Hold, Operation, Status


@pytest.fixture
def stage(open_monitor: Callable[..., Monitor]) -> Stage:
    monitor = open_monitor(pool="64M")
    if monitor.doorbell not in HYPERCALLS:
        pytest.skip("the doorbell here is not a hypercall")
    return Stage(monitor, "ab")


def bits(operation: int, peer: Puppet | None = None, tag: int = 0, more: int = 0) -> int:
    number = peer.number if peer is not None else 0
    return abi.Bell.DIRECT | operation << 8 | more | number << 16 | tag << 32


def test_operations_on_one_extent_go_in_registers(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(2)
    a.write(own.gpa, 5, 2)
    readonly = abi.DIRECT_READONLY
    assert a.direct(*own, bits(Operation.SHARE, b, 1, readonly)) == Status.OK
    assert a.direct(*own, bits(Operation.SHARE, b, 1, readonly)) == Status.E_REPEATED
    message = b.one()
    (view,) = spans_of(message)
    assert (message.operation, message.flags) == (Operation.SHARE, abi.Flags.READONLY)
    assert (message.tag, message.length, view.pages) == (1, 8192, 2)
    assert (b.holds(view.gpa), b.read(view.gpa, 2)) == (Hold.VIEWED, [5, 6])
    assert b.direct(*view, bits(Operation.RETURN, a, 2)) == Status.OK
    assert (a.one().tag, a.holds(own.gpa)) == (2, Hold.OWNED)
    assert a.direct(*own, bits(Operation.LEND, b, abi.DIRECT_TAG_MAX)) == Status.OK
    message = b.one()
    (loan,) = spans_of(message)
    assert (message.operation, message.flags, message.tag) == (Operation.LEND, 0, 0xFFFFFFFF)
    assert b.holds(loan.gpa) is Hold.BORROWED
    assert a.direct(*own, bits(Operation.RECLAIM)) == Status.OK
    assert b.direct(*loan, bits(Operation.RELEASE)) == Status.OK
    assert a.direct(*own, bits(Operation.EXCHANGE, b, 3)) == Status.OK
    assert (a.read(own.gpa, 2), b.read(spans_of(b.one())[0].gpa, 2)) == ([0, 0], [5, 6])
    assert a.direct(own.gpa, 1, bits(Operation.SEND, b, 4)) == Status.OK
    assert (b.one().tag, a.holds(own.gpa)) == (4, Hold.NONE)


def test_what_takes_long_is_done_in_turns_of_its_own(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(7)
    a.write(own.gpa, 5, 7)
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", 2)
    # As of a window whose pages are not moved as they are.
    monkeypatch.setattr(type(a.machine.peer.window), "loosen", lambda *what: True)
    turns, loosen = list[int](), slices.Slices._loosen

    def noted(self: slices.Slices, peer: Peer, request: Request) -> bool:
        turns.append(stage.monitor._turns.journal.turn)
        return loosen(self, peer, request)

    monkeypatch.setattr(slices.Slices, "_loosen", noted)
    assert a.direct(*own, bits(Operation.SEND, b)) == Status.OK
    assert len(set(turns)) == 5
    assert b.read(spans_of(b.one())[0].gpa, 7) == list(range(5, 12))


def test_what_registers_cannot_say_is_refused(stage: Stage) -> None:
    a, b = stage.puppets
    (own,) = a.alloc(1)
    before = stage.snapshot()
    reserved = [bits(operation, b, more=0x8000) for operation in (1, 2, 3, 4, 5, 7, 8)]
    reserved += [bits(operation, b, more=abi.DIRECT_READONLY) for operation in (1, 4, 5, 7, 8)]
    unknown = [bits(operation, b) for operation in (0, Operation.ALLOC, Operation.QUERY, 10, 63)]
    for attributes in reserved:
        assert a.direct(*own, attributes) == Status.E_RESERVED
    for attributes in unknown:
        assert a.direct(*own, attributes) == Status.E_OPERATION
    for gpa, pages in ((own.gpa, 513), (own.gpa - 4096, 1), (own.gpa, 0xFFFFFFFF)):
        assert a.direct(gpa, pages, bits(Operation.SEND, b)) == Status.E_RANGE
    assert a.direct(own.gpa, 2, bits(Operation.SEND, b)) == Status.E_OWNERSHIP
    assert a.direct(*own, bits(Operation.SEND, a)) == Status.E_PEER
    assert a.direct(*own, bits(Operation.RECLAIM)) == Status.E_NOT_LENT
    assert a.direct(own.gpa + 1, 1, bits(Operation.SEND, b)) < 0  # by the kernel itself
    assert a.direct(own.gpa, 0, bits(Operation.SEND, b)) < 0
    assert stage.snapshot() == before

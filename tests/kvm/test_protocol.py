"""The operations, as guests see them: what each does when it is done."""

from __future__ import annotations

import pytest
from kvm.puppets import Stage, refused, spans_of

from vmm import Monitor
from vmm.guest.abi import Hold, Operation, Status


@pytest.fixture
def stage(monitor: Monitor) -> Stage:
    return Stage(monitor, "abc")


def test_send(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 100, 3)
    assert a.send(b, own, tag=7, length=9000) is Status.OK
    message = b.one()
    (got,) = spans_of(message)
    assert b.read(got.gpa, 3) == [100, 101, 102]
    assert a.holds(own.gpa) is Hold.NONE
    assert b.lend(a, got) is Status.OK
    assert a.one().operation == Operation.LEND
    assert b.holds(got.gpa) is Hold.LENT
    assert b.reclaim(got) is Status.OK
    assert b.read(got.gpa, 3) == [100, 101, 102]
    assert refused(stage, b, Operation.RECLAIM, 0, got) is Status.E_NOT_LENT
    b.touch(own.gpa + 0x10000, "read")

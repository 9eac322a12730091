"""A system call may point into the window: at what is the machine's at present, and at no more."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

import pytest
from kvm.puppets import Puppet, Span, Stage, spans_of

from vmm.guest.abi import PAGE_SIZE as PAGE
from vmm.guest.abi import Status
from vmm.linux import boot
from vmm.linux.areas import Areas
from vmm.linux.errors import SysError
from vmm.linux.memory import Memory
from vmm.linux.window import ProgramWindow
from vmm.memory.private import PrivateMemory
from vmm.memory.template import Template

Of = Callable[[Puppet], Memory]


@pytest.fixture
def of() -> Iterator[Of]:
    """Give a program's memory whose window is that of a puppet."""
    template = Template(boot.contents())
    made: list[Memory] = []

    def memory(puppet: Puppet) -> Memory:
        layout = boot.plan(4 << 20, 4 << 20, 0, puppet.machine.window.size)
        private = PrivateMemory(layout.private, template)
        made.append(Memory(private, Areas(layout.low, layout.arena, 1 << 20), layout.window))
        monitor, machine = puppet.monitor, puppet.machine
        made[-1].window = ProgramWindow(machine.peer, machine.exchange.ledger, monitor._turns)
        return made[-1]

    yield memory
    for each in made:
        each.close()
    template.close()


def refused(call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(SysError) as caught:
        call(*arguments)
    assert caught.value.number == errno.EFAULT


def test_own_pages_are_read_and_written(stage: Stage, of: Of) -> None:
    a, _, _ = stage.puppets
    memory = of(a)
    (own,) = a.alloc(3)
    a.write(own.gpa, 5, 3)
    assert memory.words(own.gpa + PAGE, 1) == (6,)
    across = own.gpa + 2 * PAGE - 8
    memory.write(across, struct.pack("<QQ", 8, 77))
    assert a.read(own.gpa, 3) == [5, 6, 77]
    assert memory.read(across, 16) == struct.pack("<QQ", 8, 77)
    memory.write(own.gpa, memoryview(bytearray(b"name\0")))
    assert memory.text(own.gpa, 9) == b"name"
    assert memory.view(own.gpa, 9) is None
    assert memory.room(own.gpa, 3 * PAGE, write=True) == 3 * PAGE
    assert memory.room(own.gpa, 3 * PAGE + 1) == 0
    assert memory.read(own.gpa, 0) == b""


def test_pages_that_are_gone_are_a_bad_address(stage: Stage, of: Of) -> None:
    a, b, _ = stage.puppets
    memory = of(a)
    (own,) = a.alloc(2)
    a.write(own.gpa, 5, 2)
    assert a.lend(b, Span(own.gpa + PAGE, 1)) is Status.OK
    for start, size in ((own.gpa + PAGE, 1), (own.gpa, PAGE + 1), (own.gpa + 2 * PAGE, 1)):
        refused(memory.read, start, size)
        refused(memory.write, start, b"x" * size)
    assert a.read(own.gpa) == [5], "nothing has been written"
    refused(memory.read, a.machine.window.end - 1, 2)
    refused(memory.write, a.machine.window.end - 1, b"xy")
    refused(memory.read, own.gpa, (1 << 64) - 1)
    assert a.reclaim(Span(own.gpa + PAGE, 1)) is Status.OK
    assert memory.words(own.gpa + PAGE, 1) == (6,)


def test_what_is_borrowed_is_used_as_it_may_be(stage: Stage, of: Of) -> None:
    a, b, _ = stage.puppets
    memory = of(b)
    (own,) = a.alloc(2)
    a.write(own.gpa, 5, 2)
    assert a.share(b, Span(own.gpa, 1), writable=False) is Status.OK
    (seen,) = spans_of(b.one())
    assert memory.words(seen.gpa, 1) == (5,)
    refused(memory.write, seen.gpa, b"x")
    assert memory.room(seen.gpa, 8) == 8
    assert memory.room(seen.gpa, 8, write=True) == 0
    assert a.lend(b, Span(own.gpa + PAGE, 1)) is Status.OK
    (lent,) = spans_of(b.one())
    memory.write(lent.gpa, struct.pack("<Q", 9))
    assert b.read(lent.gpa) == [9]
    assert a.reclaim(own) is Status.OK
    refused(memory.read, seen.gpa, 1)
    refused(memory.read, lent.gpa, 1)


def test_a_page_in_flight_is_nobodys(stage: Stage, of: Of) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(1)
    b.idle()
    assert a.send(b, own) is Status.OK
    (place,) = b.held()
    refused(of(a).read, own.gpa, 1)
    refused(of(b).read, b.page(place.page), 1)
    b.awake()
    b.one()
    assert of(b).words(b.page(place.page), 1) == (0,)


def test_it_is_looked_at_in_a_turn_of_the_callers_too(stage: Stage, of: Of) -> None:
    a, _, _ = stage.puppets
    memory = of(a)
    (own,) = a.alloc(1)
    a.write(own.gpa, 5)
    turns = a.monitor._turns
    with turns.telling, turns.lock, turns.change:
        turn = turns.journal.turn
        assert memory.words(own.gpa, 1) == (5,)
        assert turns.journal.turn == turn

"""Programs for Linux as peers: each operation of the protocol, asked for and received by one.

Among themselves, and with bare guests. Where a page is, is looked up in physical memory, in the
ledger, and with whoever has it, or has it no more: the processor, and the system's calls.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

import pytest
from kvm import mappings
from kvm.puppets import LinuxPuppet, Puppet, Span, descriptor, spans_of
from kvm.ways import WAYS, named
from tests_support import sized

from vmm import Monitor
from vmm.errors import AccessError
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.linux.numbers import NUMBERS
from vmm.memory.pagemap import kept_in_place
from vmm.memory.runs import Run

KINDS: dict[str, tuple[type[Puppet], type[Puppet]]] = {
    "a program to a program": (LinuxPuppet, LinuxPuppet),
    "a program to a guest": (LinuxPuppet, Puppet),
    "a guest to a program": (Puppet, LinuxPuppet),
}
# A lane's hardware knows neither guests nor programs: one pair is enough there.
SOME = dict(list(KINDS.items())[: sized(3, 1)])
ACCESSES = sized(("read", "write"), ("write",))
OUTPUT = 1
pytestmark = pytest.mark.smaller_in_lanes(
    "programs with programs: with guests they are on the host"
)


class Page:
    """A page of a's own, and its frame: where it is from then on, whoever has it."""

    def __init__(self, a: Puppet, kept: contextlib.ExitStack) -> None:
        (self.own,) = a.alloc(1)
        a.write(self.own.gpa, 7)
        run = _run(a, self.own)
        self.frame = run.frame
        ((address, _),) = a.machine.peer.window.pieces(run.page, 1)
        kept.enter_context(kept_in_place(address))
        self.physical = _physical(a, self.own)

    def is_at(self, puppet: Puppet, span: Span, hold: Hold, word: int) -> None:
        """It is there, by all accounts, and its content too; read-only, if it is VIEWED."""
        run = _run(puppet, span)
        assert (run.frame, run.hold, puppet.holds(span.gpa)) == (self.frame, hold, hold)
        assert _physical(puppet, span) == self.physical
        assert puppet.read(span.gpa) == [word]
        self.to_the_system(puppet, span, True, hold is not Hold.VIEWED)

    def is_not_at(self, puppet: Puppet, span: Span, hold: Hold = Hold.NONE) -> None:
        """Who had it there has it no more, by all accounts."""
        assert puppet.holds(span.gpa) is hold
        with pytest.raises(AccessError):
            puppet.machine.frame_number(span.gpa)
        self.to_the_system(puppet, span, False, False)

    def to_the_system(self, puppet: Puppet, span: Span, readable: bool, writable: bool) -> None:
        """The system's calls read it and write it for a program; or it is a bad address, and
        nothing has been read.
        """
        if not isinstance(puppet, LinuxPuppet):
            return
        machine = puppet.machine
        printed = len(machine.stdout)
        written = puppet.system(NUMBERS["write"], OUTPUT, span.gpa, PAGE_SIZE)
        assert written == (PAGE_SIZE if readable else -errno.EFAULT)
        if readable:
            (word,) = puppet.read(span.gpa)
            assert machine.stdout[printed:].startswith(word.to_bytes(8, "little"))
        else:
            assert len(machine.stdout) == printed
        # Its end: at its beginning is what is told.
        filled = puppet.system(NUMBERS["getrandom"], span.gpa + PAGE_SIZE - 8, 8, 0)
        assert filled == (8 if writable else -errno.EFAULT)


def _run(puppet: Puppet, span: Span) -> Run:
    return next(
        run for run in puppet.held() if run.page <= (span.gpa - puppet.base) // PAGE_SIZE < run.end
    )


def _physical(puppet: Puppet, span: Span) -> int:
    number = puppet.machine.frame_number(span.gpa)
    if number is None:
        pytest.fail("physical frame numbers need root: run the tests as root")
    return number


def taken(by: Puppet, sender: Puppet, operation: Operation) -> Span:
    """Let one take the one message that there is; it says from whom, and where its page is."""
    message = by.one()
    assert (message.operation, message.status) == (operation, Status.OK)
    assert (message.sender, message.receiver) == (sender.number, by.number)
    (span,) = spans_of(message)
    assert span.pages == 1
    return span


def clear(*puppets: Puppet) -> None:
    """Let them give up all they have."""
    for operation, holds in (
        (Operation.RECLAIM, (Hold.SHARED, Hold.LENT)),
        (Operation.RELEASE, (Hold.OWNED, Hold.REVOKED)),
    ):
        for puppet in puppets:
            puppet.give_up(operation, holds)
    for puppet in puppets:
        puppet.inbox()
        assert not puppet.held()


@pytest.fixture(scope="module", params=WAYS)
def house(request: pytest.FixtureRequest) -> Iterator[dict[type[Puppet], list[Puppet]]]:
    """Two programs and two guests that are connected, each with each."""
    with named(request.param) as name, Monitor(mover=name, pool="64M", copy_below=0) as monitor:
        kinds = (LinuxPuppet, LinuxPuppet, Puppet, Puppet)
        puppets = [kind(monitor, f"p{index}") for index, kind in enumerate(kinds)]
        for index, puppet in enumerate(puppets):
            for other in puppets[index + 1 :]:
                monitor.connect(puppet.machine, other.machine)
        for puppet in puppets:
            puppet.boot()
        yield {LinuxPuppet: puppets[:2], Puppet: puppets[2:]}


@pytest.fixture(params=SOME)
def pair(
    request: pytest.FixtureRequest, house: dict[type[Puppet], list[Puppet]]
) -> Iterator[tuple[Puppet, Puppet]]:
    """A sender and a receiver."""
    first, second = KINDS[request.param]
    a, b = house[first][0], house[second][1]
    yield a, b
    clear(a, b)
    mappings.check(a.monitor)


@pytest.fixture
def page_of() -> Iterator[PageOf]:
    """Give somebody a page."""
    with contextlib.ExitStack() as kept:
        yield lambda a: Page(a, kept)


Pair = tuple[Puppet, Puppet]
PageOf = Callable[[Puppet], Page]


def test_what_is_sent_is_the_receivers_and_may_come_back(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    page.is_at(a, page.own, Hold.OWNED, 7)
    assert a.send(b, page.own, tag=3) is Status.OK
    page.is_not_at(a, page.own)
    got = taken(b, a, Operation.SEND)
    page.is_at(b, got, Hold.OWNED, 7)
    b.write(got.gpa, 8)
    assert b.send(a, got) is Status.OK
    page.is_not_at(b, got)
    page.is_at(a, taken(a, b, Operation.SEND), Hold.OWNED, 8)


def test_what_is_lent_is_the_borrowers_until_it_returns_it(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    assert a.lend(b, page.own) is Status.OK
    page.is_not_at(a, page.own, Hold.LENT)
    loan = taken(b, a, Operation.LEND)
    page.is_at(b, loan, Hold.BORROWED, 7)
    b.write(loan.gpa, 9)
    assert b.give_back(a, loan) is Status.OK
    page.is_not_at(b, loan)
    assert taken(a, b, Operation.RETURN) == page.own
    page.is_at(a, page.own, Hold.OWNED, 9)


def test_what_is_lent_to_be_read_is_only_read(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    assert a.lend(b, page.own, writable=False) is Status.OK
    page.is_not_at(a, page.own, Hold.LENT)
    loan = taken(b, a, Operation.LEND)
    page.is_at(b, loan, Hold.VIEWED, 7)
    assert b.give_back(a, loan) is Status.OK
    taken(a, b, Operation.RETURN)
    page.is_at(a, page.own, Hold.OWNED, 7)


def test_what_is_reclaimed_is_the_owners_at_once(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    assert a.lend(b, page.own) is Status.OK
    loan = taken(b, a, Operation.LEND)
    b.write(loan.gpa, 10)
    assert a.reclaim(page.own) is Status.OK
    page.is_not_at(b, loan, Hold.REVOKED)
    page.is_at(a, page.own, Hold.OWNED, 10)
    assert b.give_back(a, loan) is Status.E_RECLAIMED
    assert b.release(loan) is Status.OK
    page.is_not_at(b, loan)


@pytest.mark.parametrize("writable", [True, False], ids=["to be written", "to be read"])
def test_what_is_shared_is_seen_by_both(pair: Pair, page_of: PageOf, writable: bool) -> None:
    a, b = pair
    page = page_of(a)
    assert a.share(b, page.own, writable=writable) is Status.OK
    view = taken(b, a, Operation.SHARE)
    # Sharing may give what has been anonymous memory another frame, once.
    page.physical = _physical(a, page.own)
    page.is_at(b, view, Hold.BORROWED if writable else Hold.VIEWED, 7)
    page.is_at(a, page.own, Hold.SHARED, 7)
    a.write(page.own.gpa, 11)
    assert b.read(view.gpa) == [11]
    if writable:
        b.write(view.gpa, 12)
        assert a.read(page.own.gpa) == [12]
    assert b.give_back(a, view) is Status.OK
    page.is_not_at(b, view)
    taken(a, b, Operation.RETURN)
    page.is_at(a, page.own, Hold.OWNED, 12 if writable else 11)
    assert a.share(b, page.own, writable=writable) is Status.OK
    view = taken(b, a, Operation.SHARE)
    assert a.reclaim(page.own) is Status.OK
    page.is_not_at(b, view, Hold.REVOKED)
    assert b.release(view) is Status.OK


def test_an_exchange_leaves_zeros_and_a_release_nothing(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    assert a.exchange(b, page.own) is Status.OK
    got = taken(b, a, Operation.SEND)
    page.is_at(b, got, Hold.OWNED, 7)
    assert (a.holds(page.own.gpa), a.read(page.own.gpa)) == (Hold.OWNED, [0])
    assert _physical(a, page.own) != page.physical
    assert a.release(page.own) is Status.OK
    page.is_not_at(a, page.own)
    assert b.release(got) is Status.OK
    page.is_not_at(b, got)


@pytest.mark.not_in_ept("what the ledger says, and the monitor, is the same there")
def test_a_query_says_whose_a_page_is(pair: Pair, page_of: PageOf) -> None:
    a, b = pair
    page = page_of(a)
    assert a.lend(b, page.own) is Status.OK
    loan = taken(b, a, Operation.LEND)
    lent, borrowed = a.query(page.own), b.query(loan)
    assert (lent.hold, lent.pages) == (Hold.LENT, 1)
    assert (borrowed.hold, borrowed.pages, borrowed.owner) == (Hold.BORROWED, 1, a.number)
    assert a.reclaim(page.own) is Status.OK
    assert b.query(loan).owner == abi.NO_PEER


@pytest.mark.not_in_ept("what the ledger says, and the monitor, is the same there")
def test_nobody_can_say_that_he_is_another(pair: Pair) -> None:
    a, b = pair
    forged = descriptor(Operation.SEND, b.number, payload=b"word", sender=b.number, message=4711)
    (answer,) = a.ask(forged)
    assert (answer.status, answer.sender) == (Status.OK, a.number)
    message = b.one()
    assert (message.sender, message.receiver) == (a.number, b.number)
    assert (message.message, bytes(message.payload[:4])) == (answer.message, b"word")


@pytest.mark.parametrize("kinds", SOME.values(), ids=SOME)
@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND, Operation.RELEASE])
def test_who_touches_what_he_has_given_away_is_stopped(
    monitor: Monitor,
    page_of: PageOf,
    kinds: tuple[type[Puppet], type[Puppet]],
    access: str,
    operation: Operation,
) -> None:
    a, b = (kind(monitor, name) for kind, name in zip(kinds, "ab", strict=True))
    monitor.connect(a.machine, b.machine)
    for puppet in (a, b):
        puppet.boot()
    page = page_of(a)
    assert a.do(operation, b if operation is not Operation.RELEASE else 0, page.own) is Status.OK
    got = [] if operation is Operation.RELEASE else [taken(b, a, operation)]
    a.touch(page.own.gpa, access)
    if isinstance(a, LinuxPuppet):
        assert a.machine.fault is not None
        assert a.machine.fault.signal == "SIGSEGV"
    for span in got:
        assert b.read(span.gpa) == [7]
        assert b.holds(span.gpa) in (Hold.OWNED, Hold.BORROWED)


@pytest.mark.parametrize("how", ["lend", "share"])
def test_who_writes_what_he_may_only_read_is_stopped(
    monitor: Monitor, page_of: PageOf, how: str
) -> None:
    a, b = LinuxPuppet(monitor, "a"), LinuxPuppet(monitor, "b")
    monitor.connect(a.machine, b.machine)
    for puppet in (a, b):
        puppet.boot()
    page = page_of(a)
    assert (a.lend if how == "lend" else a.share)(b, page.own, writable=False) is Status.OK
    view = taken(b, a, Operation.LEND if how == "lend" else Operation.SHARE)
    b.touch(view.gpa, "write")
    assert b.machine.fault is not None
    assert b.machine.fault.signal == "SIGSEGV"
    assert a.one().status == Status.E_DEAD
    assert a.read(page.own.gpa) == [7]

"""Nobody has the monitor's lock for long, whatever is asked for: what one hold does is bounded.

What takes the kernel its time is counted: calls, and the translations that it has to drop. A hold
of so many of each is a few milliseconds; a test of the time itself would have to be generous.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from kvm.holds import Holds, watched
from kvm.puppets import Puppet, Span, descriptor, spans_of
from tests_support import sized

from vmm import Monitor, State
from vmm.ferry import deaths, delivery, slices
from vmm.ferry.checks import RUNS_MAX
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory import mapping

pytestmark = [
    pytest.mark.smaller_in_lanes("each page is a fault"),
    pytest.mark.not_in_ept("how long work takes, of which an emulator says nothing"),
]
_LONG = pytest.mark.not_in_lanes("how long work takes; thousands of pages, each of them a fault")

LARGE = sized(96 << 20, 20 << 20) // PAGE_SIZE
CALLS = 200  # of the kernel, in one hold
SECONDS = sized(0.25, 5.0)  # of work in one hold: many times what it takes where it is quiet
EACH = abi.EXTENTS_MAX


@pytest.fixture
def holds() -> Iterator[Holds]:
    """The holds of the monitors that are opened after this."""
    with watched() as holds:
        yield holds


@pytest.fixture
def monitor(holds: Holds, open_monitor: Callable[..., Monitor], mover: str) -> Monitor:
    return open_monitor(mover=mover, pool="256M", copy_below=0)


def machine(monitor: Monitor, name: str) -> Puppet:
    puppet = Puppet(monitor, name, window="256M", queue=128)
    puppet.boot()
    return puppet


@pytest.fixture
def pair(monitor: Monitor) -> tuple[Puppet, Puppet]:
    a, b = machine(monitor, "a"), machine(monitor, "b")
    monitor.connect(a.machine, b.machine)
    return a, b


# ---- Many small extents ----


def scattered(puppet: Puppet) -> list[list[Span]]:
    """Allocate pages of which no two are adjacent, for a ring full of as large descriptors as there
    are.
    """
    (own,) = puppet.alloc(2 * abi.TX_ENTRIES * EACH)
    return [
        [Span(own.gpa + 2 * (first + index) * PAGE_SIZE, 1) for index in range(EACH)]
        for first in range(0, abi.TX_ENTRIES * EACH, EACH)
    ]


def ask(puppet: Puppet, operation: Operation, receiver: int, extents: list[list[Span]]) -> None:
    """Ask for the same with each of these extents, in one doorbell."""
    answers = puppet.ask(*[descriptor(operation, receiver, *spans) for spans in extents])
    assert {Status(answer.status) for answer in answers} == {Status.OK}


def check(holds: Holds) -> None:
    """Check the holds since the last time."""
    longest = holds.longest()
    assert holds.most_calls() <= CALLS, holds.with_most_calls()
    assert longest.worked <= SECONDS, longest
    holds.clear()


@_LONG
def test_a_ring_full_of_scattered_pages_is_served_and_delivered_in_short_holds(
    pair: tuple[Puppet, Puppet], holds: Holds
) -> None:
    a, b = pair
    own = scattered(a)
    holds.clear()
    for operation in (Operation.LEND, Operation.SHARE):
        for back in (Operation.RECLAIM, Operation.RETURN):
            ask(a, operation, b.number, own)
            there = [spans_of(message) for message in b.inbox()]
            check(holds)
            if back is Operation.RECLAIM:
                ask(a, back, 0, own)
                b.give_up(Operation.RELEASE, {Hold.REVOKED})
            else:
                ask(b, back, a.number, there)
                a.inbox()
            check(holds)
    ask(a, Operation.SEND, b.number, own)
    there = [spans_of(message) for message in b.inbox()]
    check(holds)
    ask(b, Operation.RELEASE, 0, there)
    check(holds)


@_LONG
@pytest.mark.parametrize("taken", [False, True], ids=["in its queue", "in its window"])
def test_the_death_of_a_receiver_of_very_many_pages_is_done_in_short_holds(
    pair: tuple[Puppet, Puppet], holds: Holds, taken: bool
) -> None:
    a, b = pair
    own = scattered(a)
    if not taken:
        b.idle()
    ask(a, Operation.LEND, b.number, own)
    if taken:
        b.inbox()
    holds.clear()
    a.monitor.kill(b.machine)
    check(holds)
    a.inbox()
    assert {a.read(span.gpa)[0] for spans in own for span in spans} == {0}
    states = a.monitor.audit(mappings=True)
    assert (states["lent"], states["orphaned"]) == (0, 0)


# ---- One extent of very many runs ----

MANY = 5 * RUNS_MAX  # pages, each a run


def crumbs(a: Puppet, b: Puppet) -> Span:
    """Return an extent of b's in which no two adjacent pages are of adjacent frames."""
    (whole,) = a.alloc(2 * MANY)
    own = [Span(whole.gpa + 2 * index * PAGE_SIZE, 1) for index in range(MANY)]
    for first in range(0, MANY, MANY // 2):
        some = own[first : first + MANY // 2]
        ask(a, Operation.SEND, b.number, [some[i : i + EACH] for i in range(0, len(some), EACH)])
        b.inbox()
    first = b.held()[0].page
    assert len(b.held()) == MANY
    return Span(b.page(first), MANY)


def parts(whole: Span) -> list[Span]:
    """Return as large parts of an extent as a message takes, whatever they are made of."""
    size = RUNS_MAX * PAGE_SIZE
    return [Span(gpa, RUNS_MAX) for gpa in range(whole.gpa, whole.gpa + MANY * PAGE_SIZE, size)]


CRUMBS: dict[str, Callable[[Puppet, Puppet, Span], object]] = {
    "release": lambda b, a, own: b.release(own),
    "reclaim lent": lambda b, a, own: ([b.lend(a, p) for p in parts(own)], b.reclaim(own))[1],
    "reclaim shared": lambda b, a, own: ([b.share(a, p) for p in parts(own)], b.reclaim(own))[1],
    "reclaim taken": lambda b, a, own: (
        [b.lend(a, part) for part in parts(own)],
        a.inbox(),
        b.reclaim(own),
    )[-1],
    "return": lambda b, a, own: (
        b.lend(a, parts(own)[0]),
        a.give_back(b, *spans_of(a.one())),
    )[-1],
    "share": lambda b, a, own: b.share(a, parts(own)[0]),
}


@_LONG
@pytest.mark.parametrize("way", CRUMBS)
def test_an_extent_of_very_many_runs_is_dealt_with_in_short_holds(
    pair: tuple[Puppet, Puppet], holds: Holds, way: str
) -> None:
    a, b = pair
    own = crumbs(a, b)
    holds.clear()
    assert CRUMBS[way](b, a, own) is Status.OK
    a.inbox()
    assert holds.most_calls() <= 4 * RUNS_MAX, holds.with_most_calls()
    assert holds.longest().worked <= SECONDS, holds.longest()
    a.monitor.audit(mappings=True)


@_LONG
@pytest.mark.parametrize("operation", ["send", "share"])
def test_a_message_of_more_runs_is_refused_and_goes_in_parts(
    pair: tuple[Puppet, Puppet], operation: str
) -> None:
    a, b = pair
    own = crumbs(a, b)
    before = a.monitor.audit(mappings=True)
    assert getattr(b, operation)(a, own) is Status.E_LENGTH
    assert a.monitor.audit(mappings=True) == before
    for part in parts(own):
        assert getattr(b, operation)(a, part) is Status.OK
    assert sum(span.pages for message in a.inbox() for span in spans_of(message)) == MANY


# ---- A large one ----


class Translations:
    """How many of the kernel's translations `hide` has had to drop in one hold, at most."""

    def __init__(self, holds: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
        self._holds = holds
        self._of: object = None
        self._now = 0
        self.most = 0
        for name in ("hide", "show", "loosen"):
            call = getattr(mapping, name)
            monkeypatch.setattr(mapping, name, self._counted(call))

    def _counted(self, call: Callable[..., None]) -> Callable[..., None]:
        def counted(address: int, size: int, *rest: object, **options: object) -> None:
            if self._of is not self._holds.calls:  # a new hold
                self._of, self._now = self._holds.calls, 0
            self._now += present(address, size)
            self.most = max(self.most, self._now)
            call(address, size, *rest, **options)

        return counted


def present(address: int, size: int) -> int:
    """Return how many pages of this process are mapped there."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(address // PAGE_SIZE * 8)
        return sum(byte >> 7 for byte in file.read(size // PAGE_SIZE * 8)[7::8])


def touched(puppet: Puppet) -> Span:
    """Return a large extent that has been written to, all of it."""
    (own,) = puppet.alloc(LARGE)
    write(puppet, own)
    return own


def write(puppet: Puppet, own: Span) -> None:
    for page in range(0, LARGE, 1024):
        puppet.write(own.gpa + page * PAGE_SIZE, page, min(1024, LARGE - page))


def there(puppet: Puppet) -> Span:
    (span,) = spans_of(puppet.one())
    write(puppet, span)
    return span


LARGE_WAYS: dict[str, Callable[[Puppet, Puppet, Span], object]] = {
    "send": lambda a, b, own: a.send(b, own),
    "lend": lambda a, b, own: a.lend(b, own),
    "exchange": lambda a, b, own: a.exchange(b, own),
    "release": lambda a, b, own: a.release(own),
    "return": lambda a, b, own: (a.lend(b, own), b.give_back(a, there(b))),
    "reclaim": lambda a, b, own: (a.lend(b, own), there(b), a.reclaim(own)),
    "exit": lambda a, b, own: a.exit(),
    "kill": lambda a, b, own: a.monitor.kill(a.machine),
    "remove": lambda a, b, own: a.monitor.remove(a.machine),
    "time-out": lambda a, b, own: (a.send_order(6), a.monitor.run(0.1)),
}


@pytest.mark.parametrize("way", LARGE_WAYS)
def test_a_large_extent_in_use_is_hidden_in_short_holds(
    pair: tuple[Puppet, Puppet], holds: Holds, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    a, b = pair
    own = touched(a)
    translations = Translations(holds, monkeypatch)
    holds.clear()
    LARGE_WAYS[way](a, b, own)
    assert translations.most <= slices.HIDDEN_AT_ONCE
    check(holds)
    a.monitor.audit(mappings=True)


def test_what_the_host_sends_is_hidden_in_short_holds(
    monitor: Monitor, holds: Holds, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = machine(monitor, "b")
    buffer = monitor.host.alloc(LARGE * PAGE_SIZE)
    buffer.write(bytes(range(1, 251)) * (LARGE * PAGE_SIZE // 250))
    first = buffer.read(0, 8)
    translations = Translations(holds, monkeypatch)
    holds.clear()
    monitor.host.send(b.machine, buffer)
    assert translations.most <= slices.HIDDEN_AT_ONCE
    check(holds)
    assert b.read(spans_of(b.one())[0].gpa) == [int.from_bytes(first, "little")]


@pytest.mark.parametrize("operation", [Operation.SEND, Operation.LEND])
def test_what_is_refused_in_the_end_is_as_it_was(
    pair: tuple[Puppet, Puppet], operation: Operation
) -> None:
    a, _ = pair
    own = touched(a)
    before = a.monitor.audit()
    assert a.do(operation, 77, own) is Status.E_PEER
    assert a.monitor.audit(mappings=True) == before
    assert a.read(own.gpa + (LARGE - 1) * PAGE_SIZE) == [LARGE // 1024 * 1024 - 1 + LARGE % 1024]


# ---- Others meanwhile ----


@pytest.mark.parametrize("mover", ["memfd", "slots"])  # `remap` moves it all as it is, in one step
def test_a_thread_that_waits_for_the_lock_has_it_between_two_slices(
    open_monitor: Callable[..., Monitor], mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker, too, which has nobody else to run."""
    monitor = open_monitor(mover=mover, pool="256M", copy_below=0)
    a, b = machine(monitor, "a"), machine(monitor, "b")
    monitor.connect(a.machine, b.machine)
    own = touched(a)
    monkeypatch.setattr(slices, "HIDDEN_AT_ONCE", 16)
    seen: list[int] = []
    begun = threading.Event()
    loosen = slices.Slices._loosen

    def noted(self: slices.Slices, *args: object) -> bool:
        begun.set()
        return loosen(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(slices.Slices, "_loosen", noted)

    def look() -> None:
        begun.wait(30)
        with monitor._turns.lock:
            seen.append(monitor._exchange.slices._loosened.get(a.number, ((), -1))[1])

    thread = threading.Thread(target=look)
    thread.start()
    assert a.lend(b, own) is Status.OK
    thread.join()
    assert 0 < seen[0] < LARGE


@_LONG
@pytest.mark.parametrize("runs", [False, True], ids=["audited", "run"])
def test_between_two_parts_of_a_death_anybody_may_come(
    pair: tuple[Puppet, Puppet], monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """Who looks finds nothing half done; whoever runs machines goes on with it."""
    a, b = pair
    monitor, own = a.monitor, scattered(a)[:32]
    ask(a, Operation.LEND, b.number, own)
    b.inbox()
    seen: list[Status | dict[str, int]] = []

    def look(_: float) -> None:
        assert b.machine.state is not State.STOPPED
        seen.append(monitor.audit(mappings=True))
        if runs:
            seen.append(a.send(b))

    for name in ("RUNS_AT_ONCE", "RUNS_OF_SLOTS"):
        for module in (deaths, delivery):
            monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr("vmm.monitor.time", SimpleNamespace(sleep=look))
    monitor.kill(b.machine, "enough")
    monkeypatch.undo()
    assert len(seen) == 2 if runs else len(seen) > 32
    assert not runs or seen[1] is Status.E_DEAD
    assert b.machine.state is State.STOPPED
    assert b.machine.fault is not None
    assert (b.machine.fault.kind, b.machine.fault.reason) == ("killed", "enough")
    a.inbox()
    assert {a.read(span.gpa)[0] for spans in own for span in spans} == {0}

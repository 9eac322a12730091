"""Real machines, and a kernel that refuses a change of mappings or memslots, and then to undo it.

What each of them can really read afterwards is compared with the ledger: by the kernel's mappings
(the audit), and by the guests, who read every page that they have, and are stopped where they have
none. A machine whose window could not be put right has been stopped, with a fault that says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from kvm import mappings
from kvm.puppets import READ, Puppet, Span, Stage

from vmm import Monitor, State
from vmm.ferry.rules import READABLE
from vmm.guest.abi import PAGE_SIZE, Hold, Operation
from vmm.kvm import Vm
from vmm.memory import mapping
from vmm.memory.movers import MOVERS, Mover, RemapMover
from vmm.memory.movers.in_place import InPlaceMover

pytestmark = pytest.mark.not_in_lanes("what is refused is the same, whatever translates")


class Large(RemapMover):
    """Moves every page."""

    large = 1


class Slots(Large):
    """Gives every machine memslots over the park."""

    many = 0


class InPlace(InPlaceMover):
    """The same, as sandboxes have it."""

    large = 1


KINDS: dict[str, type[Mover]] = {**MOVERS, "remap": Large, "park": Slots, "in-place": InPlace}
_CALLS = ("show", "hide", "move", "protect", "empty", "store", "punch")
_SAYING = ("guard", "unguard")  # whether they have been refused

Act = Callable[[], object]


class Kernel:
    """Refuses the calls of these numbers, or all from the last one on, while it is armed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refused: tuple[int, ...] = ()
        self.onwards = self.armed = False
        self.calls = 0
        for name in _CALLS:
            patch.setattr(mapping, name, self._asking(getattr(mapping, name)))
        for name in _SAYING:
            patch.setattr(mapping, name, self._saying(getattr(mapping, name)))
        patch.setattr(
            Vm, "set_user_memory_region", self._asking(Vm.set_user_memory_region, method=True)
        )

    def _asking(self, real: Callable[..., object], method: bool = False) -> Callable[..., object]:
        def ask(*args: object, **options: object) -> object:
            if self.armed:
                index, self.calls = self.calls, self.calls + 1
                beyond = self.onwards and index >= self.refused[-1]
                if index in self.refused or beyond:
                    raise OSError(errno.ENOMEM, "refused by the test")
            return real(*args, **options)

        return ask

    def _saying(self, real: Callable[..., object]) -> Callable[..., object]:
        asking = self._asking(real)

        def ask(*args: object) -> object:
            try:
                return asking(*args)
            except OSError:
                return False

        return ask

    def during(self, act: Act, *refused: int, onwards: bool = False) -> int:
        """Do something meanwhile; return how many calls it took."""
        self.refused, self.onwards, self.calls, self.armed = refused, onwards, 0, True
        try:
            act()
        finally:
            self.armed = False
        return self.calls


def seamed(a: Puppet, b: Puppet) -> Span:
    """Let a machine have four pages, of which one has been shared."""
    (own,) = a.alloc(4)
    a.write(own.gpa, 0xA0, 4)
    middle = Span(own.gpa + PAGE_SIZE, 1)
    assert a.share(b, middle) == a.reclaim(middle) == 0
    b.inbox()
    b.give_up(Operation.RELEASE, {Hold.REVOKED})
    return own


def brought(a: Puppet, b: Puppet) -> Act:
    own = seamed(a, b)
    return lambda: a.send(b, own)


def part_lent_to_read(a: Puppet, b: Puppet) -> Act:
    (own,) = a.alloc(6)
    a.write(own.gpa, 0xA0, 6)
    return lambda: a.lend(b, Span(own.gpa + PAGE_SIZE, 3), writable=False)


def delivered(a: Puppet, b: Puppet) -> Act:
    own = seamed(a, b)
    b.idle()
    assert a.send(b, own) == 0
    return b.awake


def exchanged(a: Puppet, b: Puppet) -> Act:
    own, other = seamed(a, b), a.alloc(1)[0]
    return lambda: a.exchange(b, other, own)


def returned(a: Puppet, b: Puppet) -> Act:
    assert a.lend(b, seamed(a, b)) == 0
    (there,) = [Span(b.page(run.page), run.pages) for run in b.held()][:1]
    return lambda: b.give_back(a, there)


def reclaimed(a: Puppet, b: Puppet) -> Act:
    own = seamed(a, b)
    assert a.lend(b, own, writable=False) == 0
    return lambda: a.reclaim(own)


def shared(a: Puppet, b: Puppet) -> Act:
    (own,) = a.alloc(4)
    return lambda: a.share(b, Span(own.gpa + PAGE_SIZE, 2))


ACTS = (brought, part_lent_to_read, delivered, exchanged, returned, reclaimed, shared)


def act_of(prepare: Callable[[Puppet, Puppet], Act], stage: Stage, number: int) -> Act:
    """Let two new machines get ready; what they do is not asked for if one of them is stopped."""
    a, b = (stage.add(f"{name}{number}", window="2M", memory="3M") for name in "ab")
    act = prepare(a, b)

    def attempt() -> None:
        try:
            act()
        except AssertionError:
            assert State.STOPPED in (a.machine.state, b.machine.state)

    return attempt


def look(stage: Stage) -> None:
    """Let everybody read what is theirs; who has been stopped was so because of its window."""
    stage.monitor.run(20)
    stage.monitor.audit(mappings=True)
    for puppet in stage.puppets:
        fault = puppet.machine.fault
        if fault is not None:
            assert fault.kind == "internal", fault
            assert "its window" in fault.reason
            continue
        puppet.inbox()
        for run in puppet.held():
            if run.hold in READABLE:
                frames = range(run.frame, run.frame + run.pages)
                words = puppet.read(puppet.page(run.page), run.pages)
                assert words == [_word(stage, frame) for frame in frames]


def _word(stage: Stage, frame: int) -> int:
    pool = stage.monitor._mover.pool
    if mappings.is_anonymous(pool, frame):
        return int.from_bytes(mappings.content(pool, frame, 8), "little")
    return int.from_bytes(os.pread(pool.fd, 8, frame * PAGE_SIZE), "little")


def touch_nothing(stage: Stage) -> None:
    """Let everybody read where they have nothing: it is their last act."""
    for puppet in stage.puppets:
        if puppet.alive:
            held = {page for run in puppet.held() for page in range(run.page, run.end)}
            free = min(set(range(64)) - held)
            puppet.send_order(READ, 1, puppet.page(free))
            stage.monitor.run(20)
            fault = puppet.machine.fault
            assert fault is not None, f"{puppet.name} can read page {free}"
            # Where this host is busy, finding out the address may take longer than is allowed.
            assert fault.kind == "access"
            assert fault.address in (puppet.page(free), None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepare", ACTS, ids=lambda f: f.__name__)
def test_whatever_is_refused_machines_reach_what_is_theirs(
    kind: str, prepare: Callable[[Puppet, Puppet], Act], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch)
    with Monitor(mover=KINDS[kind], pool="4M", copy_below=0) as monitor:
        stage = Stage(monitor, "")
        calls = kernel.during(act_of(prepare, stage, 0))
        assert calls
        ways = [(first, second) for first in range(calls) for second in (first + 1, None)]
        for number, (first, second) in enumerate(ways, 1):
            act = act_of(prepare, stage, number)
            if second is None:
                kernel.during(act, first, onwards=True)
            else:
                kernel.during(act, first, second)
            look(stage)
            touch_nothing(stage)
            for puppet in stage.puppets:
                monitor.remove(puppet.machine)
            stage.puppets.clear()
            assert monitor.audit(mappings=True)["owned"] == 0

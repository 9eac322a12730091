"""The examples, attacked by a machine that may send to them: they do their work all the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from guest_elfs import OF_THE_README
from kvm.puppets import Puppet, Span, descriptor, spans_of

from vmm import Machine, Monitor
from vmm.guest import abi
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, PAYLOAD_MAX, Flags, Operation, Status

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

SEND, LEND, SHARE = Operation.SEND, Operation.LEND, Operation.SHARE
TAGS = (0, 7)  # the README's guest looks at none

pytestmark = pytest.mark.not_in_lanes("what the examples do with messages that are not theirs")


class Attacker(Puppet):
    """Sends what nobody has agreed on."""

    def attack(self, victim: Machine) -> None:
        """Send one of each, and let the victim take it before the next."""
        for tag in TAGS:
            for flags in (0, Flags.READONLY):
                for operation in (LEND, SHARE):
                    self.one(operation, victim, tag, 1, flags=flags)
                    self.one(operation, victim, tag, EXTENTS_MAX, flags=flags)
                    self.one(operation, victim, tag, 1, flags=flags, taken_back=True)
            self.one(SEND, victim, tag, 1)
            self.one(SEND, victim, tag, EXTENTS_MAX)
            self.one(SEND, victim, tag, 1, payload=bytes(PAYLOAD_MAX))
            self.one(SEND, victim, tag, 0, payload=bytes(range(PAYLOAD_MAX)))

    def apart(self, count: int) -> list[Span]:
        """Return so many pages of its own that do not follow each other."""
        (whole,) = self.alloc(2 * count)
        return [Span(whole.gpa + 2 * index * PAGE_SIZE, 1) for index in range(count)]

    def one(
        self,
        operation: Operation,
        victim: Machine,
        tag: int,
        extents: int,
        *,
        taken_back: bool = False,
        **fields: object,
    ) -> None:
        """Send a message whose extents are apart; maybe with its pages taken back before anybody
        can look.
        """
        pages = self.apart(extents) if extents else []
        length = len(pages) * PAGE_SIZE
        asked = [
            descriptor(operation, victim.number, *pages, tag=tag, length=length, **fields)  # type: ignore[arg-type]
        ]
        if taken_back:
            asked.append(descriptor(Operation.RECLAIM, 0, *pages))
        if self.machine.state.value == "stopped" or not victim.peer.alive:
            return
        self.ask(*asked)
        self.give_up(Operation.RECLAIM, (abi.Hold.LENT, abi.Hold.SHARED))
        self.give_up(Operation.RELEASE, (abi.Hold.OWNED,))
        self.inbox()


class Scene:
    """Machines of examples, and an attacker that may send to them all, unknown to them."""

    def __init__(self, monitor: Monitor, lines: list[str], elf: Elf) -> None:
        self.monitor = monitor
        self.lines = lines
        self._elf = elf
        self.attacker = Attacker(monitor, "mallory", queue=1000)
        self.attacker.boot()

    def spawn(self, name: str, guest: str | Path) -> Machine:
        path = guest if isinstance(guest, Path) else self._elf(guest)
        machine = self.monitor.spawn(path, name=name, window="2M", memory="4M")
        self.monitor.connect(self.attacker.machine, machine, both=False)
        return machine

    def survive(self, *machines: Machine) -> None:
        for machine in machines:
            assert machine.fault is None, machine.fault


@pytest.fixture
def scene(open_monitor: Open, mover: str, guest_elf: Elf) -> Scene:
    lines: list[str] = []
    monitor = open_monitor(mover=mover, pool="16M", console=lambda name, line: lines.append(line))
    return Scene(monitor, lines, guest_elf)


def test_the_guest_of_the_readme_answers_everybody(scene: Scene, test_guests: Path) -> None:
    echo = scene.spawn("echo", test_guests / OF_THE_README.name)
    friend = Puppet(scene.monitor, "friend")
    scene.monitor.connect(friend.machine, echo)
    friend.boot()
    scene.attacker.attack(echo)
    for value in range(3):
        (page,) = friend.alloc(1)
        friend.write(page.gpa, value)
        assert friend.do(SEND, echo.number, page, length=PAGE_SIZE) is Status.OK
        answer = friend.one()
        assert bytes(answer.payload[:4]) == b"done"
        (back,) = spans_of(answer)
        assert friend.read(back.gpa) == [value + 1]
        friend.release(back)
    scene.survive(echo)
    held = scene.monitor._exchange.ledger.window(echo.number)
    assert held == ()


@pytest.mark.parametrize("guest", ["worker", "hung_worker", "stage_filter", "demo_b", "demo_a"])
def test_a_guest_lets_go_of_whatever_it_has_not_asked_for(scene: Scene, guest: str) -> None:
    victim = scene.spawn(guest, guest)
    if guest.startswith("demo"):
        other = scene.spawn({"demo_a": "b", "demo_b": "a"}[guest], "faults/sink")
        scene.monitor.connect(victim, other)
    attacker = scene.attacker
    for operation, flags, count in [
        (LEND, Flags.READONLY, 1),
        (SHARE, 0, 1),
        (SHARE, Flags.READONLY, 1),
        (LEND, 0, EXTENTS_MAX),
        (SEND, 0, EXTENTS_MAX),
    ]:
        for _ in range(2):
            attacker.one(operation, victim, 2, count, flags=flags)
    scene.survive(victim)
    assert scene.monitor._exchange.ledger.window(victim.number) == ()


def together(scene: Scene, centre: str, *others: str) -> list[Machine]:
    """Spawn machines, the first connected to all others; they have not run."""
    machines = [scene.spawn(name, re.sub(r"-\d+$", "", name)) for name in (centre, *others)]
    for other in machines[1:]:
        scene.monitor.connect(machines[0], other)
    return machines


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("lender", "worker"), "lent 2048 numbers"),
        (("gather", "worker", "worker-2"), "8 parts, sorted by"),
        (("config_owner", "config_reader"), "one page, "),
        (("supervisor", "hung_worker", "worker"), "has done it"),
        (("echo_client", "echo_server"), "100 messages there and back"),
    ],
)
def test_examples_do_their_work_beside_one_that_writes_to_them_all(
    scene: Scene, names: tuple[str, ...], said: str
) -> None:
    attacker = scene.attacker
    numbers = [attacker.number + 1 + index for index in range(len(names))]
    pages, asked = attacker.apart(6 * len(names)), []
    for number in numbers * 3:
        asked += [
            descriptor(SEND, number, payload=b"junk", tag=2**40),
            descriptor(LEND, number, pages.pop(), flags=Flags.READONLY, tag=2**40),
            descriptor(SEND, number, pages.pop(), tag=2**40),
        ]
    attacker.start(*asked)  # and so it runs first
    machines = together(scene, *names)
    assert [machine.number for machine in machines] == numbers
    scene.monitor.run(timeout=60)
    assert [answer.status for answer in attacker.answers(len(asked))] == [Status.OK] * len(asked)
    scene.survive(*machines)
    assert any(said in line for line in scene.lines), scene.lines

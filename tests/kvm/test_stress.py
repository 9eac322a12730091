"""Many machines doing everything at once, for PAGEFERRY_STRESS_SECONDS; PAGEFERRY_STRESS_SEED."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_support import sized

from vmm import Machine, Monitor, State
from vmm.endpoint import Buffer, Received
from vmm.errors import AccessError, GuestError
from vmm.ferry.events import Event
from vmm.guest.abi import PAGE_SIZE, Hold, Operation

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

SECONDS = float(os.environ.get("PAGEFERRY_STRESS_SECONDS", sized(3, 1)))
SEED = int(os.environ.get("PAGEFERRY_STRESS_SEED", "1"))
PATIENCE = 60  # seconds

# ---- What traders do (tests/guests/trader.c), done by the host ----

TRADERS = sized(8, 4)
LIVES = 400  # acts, on the average
SECONDS_BETWEEN_KILLS = 0.2 * sized(1, 3)
POOL, QUOTA = 16 * TRADERS * PAGE_SIZE, 32 * PAGE_SIZE  # often too little
START, STOP, DELIBERATE = 0x7374617274, 1, 0x64656C69
GIFT, LOAN, BACK = 1, 2, 3
NOTE = struct.Struct("<III8I")
WORDS = struct.Struct("<512Q")
SPREAD, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def stamped(value: int) -> bytes:
    """Return a page with the content of this number."""
    words = [0] * 512
    words[::8] = [value * SPREAD + index & MASK for index in range(0, 512, 8)]
    return WORDS.pack(*words)


def check(page: bytes, value: int) -> None:
    """Check that a page has the content of a number, apart from what those who share it wrote."""
    words = WORDS.unpack(page)
    expected = [value * SPREAD + index & MASK if value else 0 for index in range(0, 512, 8)]
    assert list(words[::8]) == expected, f"foreign content: {value:#x}, {words[::8]}"
    for word in filter(None, words[1::8]):
        high = word >> 32
        assert word == high << 32 | (high * 0x9E3779B1 + 1 & 0xFFFFFFFF), f"torn: {word:#x}"


class Market:
    """Traders that are replaced when they die, and the host as one more. Ends when all are dead."""

    def __init__(self, monitor: Monitor, trader: Path, seed: int) -> None:
        self.monitor = monitor
        self.trader = trader
        self.random = random.Random(seed)
        self.alive: list[Machine] = []
        self.events: Counter[tuple[str, str]] = Counter()
        self.deaths: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lines: list[str] = []
        self.audits = 0
        self.values = 0
        self.own: list[Buffer] = []  # what came to stay
        self.borrowed: list[tuple[Buffer, int]] = []
        # Every second of adjacent pages: each comes back by itself.
        self.lendable = [monitor.host.alloc(PAGE_SIZE) for _ in range(8)][::2]
        self.written = dict.fromkeys(self.lendable, 0)
        monitor.trace.listen(self._count)
        self._audit = monitor._exchange.ledger.audit
        monitor._exchange.ledger.audit = self._counted_audit  # type: ignore[method-assign]
        for _ in range(TRADERS):
            self.spawn()

    def _counted_audit(self) -> dict[str, int]:
        self.audits += 1
        return self._audit()

    def _count(self, event: Event) -> None:
        fields = event.fields
        if event.kind == "stop":
            self.deaths[self._death(event)] += 1
        elif event.kind not in ("exit", "spawn"):
            self.events[event.kind, fields["status"]] += 1

    def _death(self, event: Event) -> str:
        fault: dict[str, Any] | None = event.fields["fault"]
        if fault is None:
            return {0: "told to stop", 1: "exit"}[event.fields["exit_code"]]
        if fault["kind"] == "killed":
            return "killed"
        machine = self.monitor.machines[event.fields["machine"]]
        if fault["kind"] == "access":
            if machine.guest.control.progress[0] == DELIBERATE:
                return "access of its own will"
            if "whose owner has reclaimed it" in fault["reason"]:
                return "access as the page was reclaimed"
        self.wrong.append(f"{machine.name}: {fault}")
        return "wrong"

    def spawn(self) -> None:
        """Add a trader that knows all the others."""
        name = f"t{len(self.monitor.machines)}"
        new = self.monitor.spawn(
            self.trader, name=name, window="2M", memory="4M", stack="64K", quota=QUOTA, queue=3
        )
        start = struct.pack("<QI", self.random.getrandbits(64), LIVES)
        self.monitor.host.send(new, payload=start, tag=START)  # before anybody else knows it
        for other in self.alive:
            self.monitor.connect(new, other)
        self.alive.append(new)

    # ---- The host's part ----

    def receive(self) -> None:
        """Take what has come, and look at it."""
        while (received := self.monitor.host.receive()) is not None:
            if received.operation in (Operation.SEND, Operation.LEND, Operation.SHARE):
                self._take(received)

    def _take(self, received: Received) -> None:
        _, loan, _, *values = NOTE.unpack(received.payload)
        for buffer in received.buffers:
            mine = [values.pop(0) for _ in range(0, buffer.size, PAGE_SIZE)]
            with contextlib.suppress(AccessError):  # reclaimed already
                content = buffer.read()
                for index, value in enumerate(mine):
                    check(content[index * PAGE_SIZE : (index + 1) * PAGE_SIZE], value)
            if received.operation is Operation.SEND:
                self.own.append(buffer)
            else:
                self.borrowed.append((buffer, loan))

    def let_go(self) -> None:
        """Let go of something, if there is anything: give it back, release it."""
        host = self.monitor.host
        if self.borrowed:
            buffer, loan = self.borrowed.pop(self.random.randrange(len(self.borrowed)))
            pages = buffer.size // PAGE_SIZE
            back = NOTE.pack(BACK, loan, pages, *self._values(buffer))
            try:
                host.give_back(buffer, payload=back)
            except GuestError as error:
                if "E_RECLAIMED" in str(error):
                    self._release(buffer)
                else:  # the queue is full
                    self.borrowed.append((buffer, loan))
        if len(self.own) > 4:
            host.release(self.own.pop(self.random.randrange(len(self.own))))

    def _release(self, buffer: Buffer) -> None:
        """Let go of a buffer of which at least a part has been reclaimed."""
        with contextlib.suppress(GuestError):
            self.monitor.host.release(buffer)

    def _values(self, buffer: Buffer) -> list[int]:
        """Return the numbers of a buffer's contents, as they say themselves."""
        try:
            content = buffer.read()
        except AccessError:
            content = b""
        inverse = pow(SPREAD, -1, 1 << 64)
        firsts = [
            int.from_bytes(content[i : i + 8], "little") for i in range(0, len(content), 4096)
        ]
        return [first * inverse & MASK for first in firsts] + [0] * (8 - len(firsts))

    def give(self) -> None:
        """Send, lend or share a page, or take one back."""
        r, host = self.random, self.monitor.host
        buffer, to = r.choice(self.lendable), r.choice(self.alive)
        with contextlib.suppress(GuestError):  # queue or window full, dead meanwhile, come back
            if buffer.hold in (Hold.LENT, Hold.SHARED):
                host.reclaim(buffer)
            if buffer.hold is Hold.OWNED:
                if self.written[buffer]:
                    check(buffer.read(), self.written[buffer])
                self.values += 1
                buffer.write(stamped(self.values))
                writable, lent = r.random() < 0.3, r.random() < 0.5
                self.written[buffer] = 0 if writable and lent else self.values
                note = NOTE.pack(LOAN, self.values, 1, self.values, *[0] * 7)
                part = host.lend if lent else host.share
                part(to, buffer, writable=writable, payload=note)

    # ---- The supervisor ----

    def run(self, seconds: float) -> None:
        """Let them trade; then stop half of them, and kill the others."""
        failures: list[BaseException] = []

        def supervise() -> None:
            try:
                self._supervise(time.monotonic() + seconds)
            except BaseException as error:
                failures.append(error)
            finally:
                self._end()

        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            self.monitor.run(seconds + PATIENCE)
        finally:
            supervisor.join()
        if failures:
            raise failures[0]

    def _supervise(self, end: float) -> None:
        kill_at = time.monotonic()
        while (now := time.monotonic()) < end and not self.wrong:
            self.receive()
            self.let_go()
            self.give()
            if now > kill_at:
                self.monitor.kill(self.random.choice(self.alive))
                kill_at = now + self.random.expovariate(1 / SECONDS_BETWEEN_KILLS)
            self.alive = [m for m in self.alive if m.state is not State.STOPPED]
            while len(self.alive) < TRADERS:
                self.spawn()
            time.sleep(self.random.uniform(0, 0.004))

    def _end(self) -> None:
        for machine in self.alive:
            if self.random.random() < 0.5:
                self.monitor.notice(machine, STOP)
            else:
                self.monitor.kill(machine)

    def settle(self) -> dict[str, int]:
        """Give back all that the host has; return the audit."""
        host = self.monitor.host
        self.receive()
        for buffer, _ in self.borrowed:
            try:
                host.give_back(buffer)
            except GuestError:
                host.release(buffer)
        for buffer in self.own:
            host.release(buffer)
        return self.monitor.audit()


@pytest.mark.smaller_in_lanes("a lane has a fiftieth of the speed: half as many machines")
@pytest.mark.timeout(SECONDS * 2 + 2 * PATIENCE)
def test_machines_that_do_everything_at_random_and_die_upset_nobody(
    open_monitor: Open, test_guest: Elf, mover: str
) -> None:
    lines: list[str] = []
    monitor = open_monitor(
        mover=mover,
        pool=POOL,
        workers=2,
        copy_below=3 * PAGE_SIZE,  # exchanges below it: some are, some are moved
        audit=True,
        console=lambda name, line: lines.append(f"{name}: {line}"),
    )
    market = Market(monitor, test_guest("trader"), SEED)
    reserved = monitor.audit()["owned"]
    market.run(SECONDS / 2)  # for each mover
    print(dict(market.deaths), market.audits, "audits")
    print({f"{kind} {status}": n for (kind, status), n in sorted(market.events.items())})
    assert market.wrong == [], lines
    assert {m.state for m in monitor.machines.values()} == {State.STOPPED}
    assert market.settle() == {
        "free": POOL // PAGE_SIZE - reserved,
        "owned": reserved,
        **dict.fromkeys(("in_flight", "lent", "shared", "orphaned"), 0),
    }


# ---- Lost wake-ups ----

PAIRS = sized(4, 2)
FLOOD = struct.Struct("<IIII")
PAIR = struct.Struct("<IIIIQII")
DAWDLE = 20_000  # iterations of a guest's loop, at most


def all_done(monitor: Monitor) -> None:
    """Every machine has come to its end: none still waits, or was stopped."""
    late = [m for m in monitor.machines.values() if m.exit_code != 0]
    assert not late, [(m, m.fault) for m in late]


@contextlib.contextmanager
def disturbed(monitor: Monitor, seed: int) -> Iterator[None]:
    """Interrupt machines, and give them notices, at random moments."""
    stop = threading.Event()

    def disturb(seed: int) -> None:
        r, machines = random.Random(seed), list(monitor.machines.values())
        while not stop.wait(r.choice((0, 0.0001, 0.001)) * sized(1, 20)):
            machine = r.choice(machines)
            if r.random() < 0.5:
                monitor.interrupt(machine)
            else:
                monitor.notice(machine, 2)

    threads = [threading.Thread(target=disturb, args=(seed + index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.smaller_in_lanes("each message takes fifty times as long")
@pytest.mark.parametrize("workers", [2, 1, 3][: sized(3, 1)])
def test_no_wake_up_is_lost_however_moments_fall(
    open_monitor: Open, test_guest: Elf, workers: int
) -> None:
    """A machine that looks for a message, dawdles, and then waits, has not missed one meanwhile.

    If it had, the run would end with machines that wait, or not at all.
    """
    monitor = open_monitor(pool="2M", workers=workers)
    image, rounds = test_guest("pages_to_and_fro"), sized(120, 10)
    for pair in range(PAIRS):
        a, b = (
            monitor.spawn(image, name=f"{side}{pair}", window="2M", memory="4M") for side in "ab"
        )
        monitor.connect(a, b)
        for machine, peer, begins in ((a, b, 1), (b, a, 0)):
            order = PAIR.pack(peer.number, begins, rounds, sized(DAWDLE, 10), 1000 * pair + 1, 1, 0)
            monitor.host.send(machine, payload=order)
    with disturbed(monitor, SEED):
        monitor.run(PATIENCE)
    all_done(monitor)
    assert sum(m.peer.sent for m in monitor.machines.values()) == PAIRS * 2 * (rounds + 1)


@pytest.mark.smaller_in_lanes("each message takes fifty times as long")
@pytest.mark.parametrize("workers", [2, 1][: sized(2, 1)])
def test_a_message_from_another_thread_wakes_its_receiver_while_all_workers_wait(
    open_monitor: Open, test_guest: Elf, workers: int
) -> None:
    monitor = open_monitor(pool="2M", workers=workers)
    waiter = monitor.spawn(test_guest("wait_a_minute"), window="2M", memory="4M")
    relay = monitor.spawn(test_guest("relay"), window="2M", memory="4M")
    answers: list[Received | None] = []

    def ask() -> None:
        for _ in range(sized(100, 10)):
            time.sleep(random.uniform(0, 0.001))
            page = monitor.host.alloc(PAGE_SIZE)
            page.write(b"\x01")  # hop to make
            monitor.host.send(relay, page)
            end = time.monotonic() + PATIENCE / 4
            while (answer := monitor.host.receive()) is None and time.monotonic() < end:
                time.sleep(0.0001)
            answers.append(answer)
            if answer is None:
                break
            monitor.host.release(*answer.buffers)
        monitor.kill(waiter)

    asker = threading.Thread(target=ask)
    asker.start()
    monitor.run(PATIENCE)
    asker.join()
    assert answers == [answer for answer in answers if answer is not None]
    assert len(answers) == sized(100, 10)
    assert relay.state is State.PARKED


def test_a_run_ends_when_the_last_machine_that_waits_is_killed(
    open_monitor: Open, test_guest: Elf
) -> None:
    """Not when the time-out would have come that it waited for."""
    monitor = open_monitor(pool="2M", workers=2)
    machine = monitor.spawn(test_guest("wait_a_minute"), window="2M", memory="4M")
    ended = threading.Event()

    def kill() -> None:
        while machine.state is not State.PARKED and not ended.wait(0.001):
            pass
        monitor.kill(machine)

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    monitor.run(PATIENCE)
    ended.set()
    killer.join()
    assert time.monotonic() - start < PATIENCE / 2
    assert machine.fault is not None
    assert machine.fault.kind == "killed"


# ---- Full queues ----


def flood(monitor: Monitor, image: Path, *sends: int) -> None:
    """Let machines in a circle, with queues of two, send so many messages to the next one each."""
    machines = [
        monitor.spawn(image, name=f"m{index}", window="2M", memory="4M", queue=2)
        for index in range(len(sends))
    ]
    following = [*machines[1:], machines[0]]
    takes = [sends[-1], *sends]
    for index, (a, b) in enumerate(zip(machines, following, strict=True)):
        monitor.connect(a, b, both=False)
        order = FLOOD.pack(b.number, machines[index - 1].number, sends[index], takes[index])
        monitor.host.send(a, payload=order)
    monitor.run(PATIENCE)
    all_done(monitor)
    assert [m.peer.sent for m in machines] == list(sends)
    assert [m.peer.received for m in machines] == [1 + takes[index] for index in range(len(sends))]


@pytest.mark.smaller_in_lanes("each message takes fifty times as long")
@pytest.mark.parametrize("workers", [2, 1][: sized(2, 1)])
@pytest.mark.parametrize("senders", [(1, 1), (1, 0), (1, 1, 1)][: sized(3, 1)])
def test_machines_that_flood_each_other_get_everything_through(
    open_monitor: Open, test_guest: Elf, senders: tuple[int, ...], workers: int
) -> None:
    """One way, two against each other, three in a circle: who waits for room takes what comes."""
    monitor = open_monitor(pool="2M", workers=workers)
    count = sized(150, 70)  # the receive ring alone takes 64
    flood(monitor, test_guest("flood"), *(count * sender for sender in senders))


# ---- Turns ----


@pytest.mark.smaller_in_lanes("a slice is ten milliseconds everywhere")
def test_each_machine_gets_its_turn_whatever_the_others_do(
    open_monitor: Open, test_guest: Elf
) -> None:
    """One worker; machines that never exit by themselves, pairs that talk without end.

    Seen from outside a turn is a number of exits in a row that are one machine's, or one pair's.
    Between two turns of the same each of the others has had one, and one of them may have had two.
    """
    monitor = open_monitor(pool="2M")
    names = {f"s{index}": f"s{index}" for index in range(3)}
    for name in names:
        monitor.spawn(test_guest("spin"), name=name, window="2M", memory="4M")
    for pair in range(2):
        a, b = (
            monitor.spawn(
                test_guest("pages_to_and_fro"), name=f"{side}{pair}", window="2M", memory="4M"
            )
            for side in "ab"
        )
        monitor.connect(a, b)
        for machine, peer, begins in ((a, b, 1), (b, a, 0)):
            names[machine.name] = f"pair{pair}"
            order = PAIR.pack(peer.number, begins, 1 << 31, 0, 1, 1, 0)
            monitor.host.send(machine, payload=order)
    turns: list[str] = []
    groups, enough, over = set(names.values()), sized(60, 20), threading.Event()

    def note(event: Event) -> None:
        if event.kind == "exit" and turns[-1:] != [names[event.fields["machine"]]]:
            turns.append(names[event.fields["machine"]])
            if len(turns) == enough:
                over.set()

    def end() -> None:
        over.wait(PATIENCE)
        for machine in monitor.machines.values():
            monitor.kill(machine)

    monitor.trace.listen(note)
    ender = threading.Thread(target=end)
    ender.start()
    monitor.run(PATIENCE)
    ender.join()
    assert len(turns) >= enough
    for group in groups:
        places = [-1, *(i for i, turn in enumerate(turns[:enough]) if turn == group), enough]
        waits = [b - a - 1 for a, b in itertools.pairwise(places)]
        assert max(waits) <= len(groups), f"{group} waited for {max(waits)} turns: {turns}"


# ---- Parts of what another machine uses ----


@pytest.mark.smaller_in_lanes("each page takes fifty times as long to reclaim")
@pytest.mark.parametrize("workers", [2, 1][: sized(2, 1)])
def test_what_is_borrowed_can_be_used_while_its_neighbours_are_reclaimed(
    open_monitor: Open, test_guest: Elf, mover: str, workers: int
) -> None:
    """On a host that can only replace the whole of a memslot the rest is not gone for a moment."""
    for _ in range(sized(4, 1)):
        monitor = open_monitor(pool="2M", mover=mover, workers=workers)
        for name in ("owner", "borrower"):
            monitor.spawn(test_guest("bit_by_bit"), name=name, window="2M", memory="4M")
        monitor.connect(*monitor.machines.values())
        monitor.run(PATIENCE)
        all_done(monitor)

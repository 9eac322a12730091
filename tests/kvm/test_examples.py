"""The example guests that docs/guests.md walks through, on every mover."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import pageferry

from vmm import Machine, Monitor
from vmm.ferry.events import Event
from vmm.guest.abi import PAGE_SIZE

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

WORKERS = ("worker", "worker-2", "worker-3")


class Scene:
    """A monitor that audits itself, with example guests; the lines that they log."""

    def __init__(self, open_monitor: Open, mover: str, guest_elf: Elf) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []
        self._guest_elf = guest_elf
        self.monitor = open_monitor(
            mover=mover,
            pool="4M",
            audit=True,
            console=lambda name, line: self.lines.append(f"{name}: {line}"),
        )
        self.monitor.trace.listen(self.events.append)

    def spawn(self, name: str, guest: str | None = None, **options: int) -> Machine:
        """Make a machine of the guest of its name, or of another, in a small window."""
        path = self._guest_elf(guest or name)
        return self.monitor.spawn(path, name=name, window="2M", memory="4M", **options)

    def star(self, centre: str, *others: str) -> list[Machine]:
        """Make a machine that is connected to all the others, and these: "worker-2" is a worker."""
        first = self.spawn(centre)
        rest = [self.spawn(name, re.sub(r"-\d+$", "", name)) for name in others]
        for machine in rest:
            self.monitor.connect(first, machine)
        return [first, *rest]

    def run(self) -> dict[str, int | None]:
        """Run them to their end; return their exit codes."""
        machines = self.monitor.run(timeout=60)
        pages = self.monitor.audit()
        assert pages["free"] == sum(pages.values()) == (4 << 20) // PAGE_SIZE
        return {machine.name: machine.exit_code for machine in machines}

    def answers(self, sender: str) -> list[tuple[str, str]]:
        """Return what a machine asked for with pages of its own or lent to it, and the statuses."""
        return [
            (event.kind, event.fields["status"])
            for event in self.events
            if event.kind in ("lend", "reclaim", "return", "exchange")
            and event.fields["sender"] == sender
        ]


@pytest.fixture
def scene(open_monitor: Open, mover: str, guest_elf: Elf) -> Scene:
    return Scene(open_monitor, mover, guest_elf)


def test_readers_of_a_shared_page_see_it_change_in_place(scene: Scene) -> None:
    machines = scene.star("config_owner", "config_reader", "config_reader-2")
    assert scene.run() == {machine.name: 0 for machine in machines}
    assert sorted(scene.lines) == [
        "config_owner: one page, 2 readers: 2 returned it, 0 stopped; it is mine alone again",
        "config_reader-2: the rate was 100, and is 250 in the same page",
        "config_reader: the rate was 100, and is 250 in the same page",
    ]
    assert sum(event.kind == "share" for event in scene.events) == 2


def test_a_reader_that_writes_is_stopped_and_the_others_go_on(scene: Scene) -> None:
    owner, reader = scene.star("config_owner", "config_reader")
    writer = scene.spawn("config_writer", "config_reader")
    scene.monitor.connect(owner, writer)
    assert scene.run() == {owner.name: 0, reader.name: 0, writer.name: None}
    assert sorted(scene.lines) == [
        "config_owner: one page, 2 readers: 1 returned it, 1 stopped; it is mine alone again",
        "config_reader: the rate was 100, and is 250 in the same page",
    ]
    assert writer.fault is not None
    assert (writer.fault.kind, writer.fault.access) == ("access", "write")
    assert writer.fault.address == writer.window.base + 8
    assert "a page that it may only read" in writer.fault.reason


def test_a_lent_buffer_comes_back_sorted_to_where_it_was(scene: Scene) -> None:
    scene.star("lender", "worker")
    assert scene.run() == {"lender": 0, "worker": 0}
    assert scene.lines == [
        "lender: lent 2048 numbers to worker, and have them back sorted; their sum is 4398912152576"
    ]


def test_a_pipeline_goes_on_in_order_through_queues_of_one(scene: Scene) -> None:
    names = ("stage_source", "stage_filter", "stage_sink")
    source, filter_, sink = (scene.spawn(name, queue=1) for name in names)
    scene.monitor.connect(source, filter_, both=False)
    scene.monitor.connect(filter_, sink, both=False)
    assert scene.run() == dict.fromkeys(names, 0)
    answers = scene.answers("stage_source")
    waits = answers.count(("exchange", "E_QUEUE_FULL"))
    assert answers.count(("exchange", "OK")) == 16
    assert scene.lines == [
        f"stage_source: 16 blocks from one place; the filter had no room {waits} times",
        "stage_sink: 16 blocks, in order; the sum of all is 268451840",
    ]


def test_parts_are_gathered_from_several_workers(scene: Scene) -> None:
    _, *workers = scene.star("gather", *WORKERS)
    assert scene.run() == dict.fromkeys(("gather", *WORKERS), 0)
    assert scene.lines == ["gather: 8 parts, sorted by 3 workers; the sum of all is 17487242629120"]
    returned = [worker.peer.sent for worker in workers]
    assert (sum(returned), all(returned)) == (8, True)


def test_a_supervisor_takes_a_job_back_from_a_hung_worker(scene: Scene) -> None:
    scene.star("supervisor", "hung_worker", "worker")
    assert scene.run() == {"supervisor": 0, "hung_worker": 0, "worker": 0}
    late, done = (line for line in scene.lines if line.startswith("supervisor: "))
    assert late == "supervisor: hung_worker has not answered within 400 ms: reclaimed"
    assert done == "supervisor: worker has done it: 1024 numbers, their sum is 2241353503232"
    assert "hung_worker: was too late: the job has been taken back" in scene.lines
    assert scene.answers("supervisor") == [("lend", "OK"), ("reclaim", "OK"), ("lend", "OK")]
    assert scene.answers("hung_worker") == [("return", "E_RECLAIMED")]
    assert scene.answers("worker") == [("return", "OK")]


def test_a_supervisor_asks_another_if_a_worker_has_died(scene: Scene) -> None:
    supervisor = scene.spawn("supervisor")
    for name, guest in (("panic", "faults/panic"), ("worker", "worker")):
        scene.monitor.connect(supervisor, scene.spawn(name, guest))
    assert scene.run() == {"supervisor": 0, "panic": None, "worker": 0}
    assert scene.lines == [
        "supervisor: worker has done it: 1024 numbers, their sum is 2241353503232"
    ]


def test_the_command_runs_an_example_with_the_channels_that_it_needs(guest_elf: Elf) -> None:
    guests = [guest_elf(name) for name in ("gather", "worker", "worker", "worker")]
    channels = [option for name in WORKERS for option in ("--connect", f"gather:{name}")]
    ended = pageferry("run", *guests, *channels, "--window", "2M", "--audit")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "gather: 8 parts, sorted by 3 workers; the sum of all is 17487242629120",
        "audit: 2048 free, 0 owned, 0 in flight, 0 lent, 0 shared, 0 orphaned: "
        "2048 pages, the whole pool",
    ]

"""Buffers of the host's as files of a program: their very pages, for as long as they are lent."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator

import pytest
from cut_off import Tracer
from linux_programs import linux_program
from tests_support import sized

from vmm import AccessError, Buffer, ConfigError, GuestError, Machine, Monitor, Status
from vmm.errors import ArgumentTypeError, ClosedError
from vmm.guest.abi import PAGE_SIZE as PAGE
from vmm.guest.abi import Hold, Operation
from vmm.linux.machine import LinuxMachine
from vmm.memory import mapping
from vmm.memory.pagemap import populated

Open = Callable[..., Monitor]
MIB = 1 << 20
IN, OUT = "/in/data", "/out/data"
_THE_MONITORS_OWN = pytest.mark.not_in_ept("what the monitor does by itself")
EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"

pytestmark = [
    pytest.mark.timeout(3600 if EVERY else 120),
    pytest.mark.smaller_in_lanes("one mover: each run takes a hundred times as long there"),
]


class Watch:
    """A program's standard output, which does something when a line says "*now"."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.then: Callable[[], object] = list

    def write(self, data: bytes) -> int:
        for line in data.decode().splitlines():
            self.lines.append(line)
            if line == "*now":
                self.then()
        return len(data)


def spawn(monitor: Monitor, buffer: Buffer, *steps: str, **options: object) -> LinuxMachine:
    options.setdefault("files", {IN: buffer})
    options.setdefault("window", "4M")
    machine = monitor.spawn(
        linux_program("lent"),
        args=steps,
        memory="16M",
        **options,  # type: ignore[arg-type]
    )
    assert isinstance(machine, LinuxMachine)
    return machine


def spawn_out(monitor: Monitor, buffer: Buffer, *steps: str, **options: object) -> LinuxMachine:
    return spawn(monitor, buffer, *steps, files={OUT: buffer}, writable_files=[OUT], **options)


def lines(machine: LinuxMachine) -> list[str]:
    assert machine.fault is None, machine.fault
    return machine.stdout.decode().splitlines()


def numbered(monitor: Monitor, pages: int) -> Buffer:
    buffer = monitor.host.alloc(pages * PAGE)
    for page in range(pages):
        buffer.write(b"page%d" % page, page * PAGE)
    return buffer


# ---- Reading ----


@_THE_MONITORS_OWN
def test_it_is_read_as_any_other_file(monitor: Monitor) -> None:
    buffer = monitor.host.alloc(2 * PAGE + 100)
    buffer.write(b"first")
    buffer.write(b"last", 2 * PAGE + 96)
    machine = spawn(
        monitor,
        buffer,
        *(f"o {IN} r", "i", "r 0", f"r {2 * PAGE + 96}", f"r {2 * PAGE + 100}", "r 999999"),
        *(f"o {IN} w", f"o {IN} t"),
    )
    assert buffer.hold is Hold.LENT
    with pytest.raises(AccessError):
        buffer.read()
    assert machine.files[IN][:5] == b"first"
    monitor.audit(mappings=True)
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", f"size {2 * PAGE + 100}, mode 100444"),
        *("read: 8", "first", "read: 4", "last", "read: 0", "", "read: 0", ""),
        *("open: EROFS", "open: EROFS"),
    ]
    assert (buffer.hold, buffer.read(0, 5)) == (Hold.OWNED, b"first")
    assert machine.outcome()["messages_received"] == 0
    assert dict(machine.files) == {}


def test_what_is_mapped_are_its_pages(monitor: Monitor) -> None:
    buffer, watch = numbered(monitor, 4), Watch()
    frame = buffer.frame_number()
    machine = spawn(
        monitor,
        buffer,
        *(f"o {IN} r", f"m s r 0 {4 * PAGE}", f"m p r {2 * PAGE} {2 * PAGE}", "g 0 0", "*now"),
        *("g 0 0", f"g 0 {3 * PAGE}", "g 1 0", f"g 1 {PAGE}", "c 0 0 9"),
        stdout=watch,
    )
    memory = machine.guest.process.memory

    def look() -> None:
        shared, private = sorted(
            (area for area in memory.areas.spans if area.delta),
            key=lambda area: area.start - area.end,
        )
        gpa = shared.start + shared.delta
        assert private.start + private.delta == gpa + 2 * PAGE
        assert machine.frame_number(gpa) == frame
        for area in (shared, private):
            size = area.end - area.start
            assert not populated(memory._backing.host(area.start, size), size), "a copy"
        # What is stored there, by whomever, is what the program sees.
        page = (gpa - machine.window.base) // PAGE
        for at, text in ((0, b"changed0"), (3, b"changed3")):
            if not memory.window.peer.window.blinks:
                address = machine.peer.window.address(page + at)
                mapping.protect(address, PAGE, writable=True)
                ctypes.memmove(address, text, 8)
                mapping.protect(address, PAGE, writable=False)
            else:
                ctypes.memmove(machine.peer.window.address(page + at), text, 8)

    watch.then = look
    monitor.run(20)
    assert machine.fault is None, machine.fault
    assert watch.lines == [
        *("open: 0", "map: 0", "map: 0", "at 0: page0", "*now", "at 0: changed0"),
        *(f"at {3 * PAGE}: changed3", "at 0: page2", f"at {PAGE}: changed3", "call: EBADF"),
    ]
    assert buffer.frame_number() == frame
    assert buffer.read(3 * PAGE, 8) == b"changed3"


def test_a_mapping_of_ones_own_is_written_without_anybody_seeing_it(monitor: Monitor) -> None:
    buffer = numbered(monitor, 3)
    machine = spawn(
        monitor,
        buffer,
        *(f"o {IN} r", f"m p w 0 {2 * PAGE}", "s 0 0 mine", "g 0 0", f"g 0 {PAGE}"),
        *(f"m p r 0 {3 * PAGE}", f"p 1 {PAGE} {PAGE} w", f"s 1 {PAGE} mine", "g 1 0"),
        *(f"g 1 {PAGE}", f"g 1 {2 * PAGE}", f"m s r 0 {3 * PAGE}", f"g 2 {PAGE}"),
        *(f"p 2 0 {PAGE} w", f"m s w 0 {PAGE}"),
    )
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", "map: 0", "at 0: mine", f"at {PAGE}: page1"),
        *("map: 0", "protect: 0", "at 0: page0", f"at {PAGE}: mine", f"at {2 * PAGE}: page2"),
        *("map: 0", f"at {PAGE}: page1", "protect: EACCES", "map: EACCES"),
    ]
    assert [buffer.read(at, 5) for at in (0, PAGE)] == [b"page0", b"page1"]


def test_addresses_come_and_go_between_it_and_other_memory(monitor: Monitor) -> None:
    buffer = numbered(monitor, 1024)
    machine = spawn(
        monitor,
        buffer,
        *(f"o {IN} r", f"m s r 0 {4 * MIB}", "g 0 0", f"g 0 {2 * MIB}"),
        *(f"a 0 0 {2 * MIB}", "g 0 0", f"g 0 {2 * MIB}"),  # one large page, where it has been
        *(f"f 0 0 {PAGE}", "g 0 0", f"g 0 {PAGE}", f"a 0 0 {4 * MIB}", f"g 0 {2 * MIB}"),
        *(f"f 0 {PAGE} {2 * MIB}", f"g 0 {PAGE}", f"g 0 {2 * PAGE}", f"g 0 {4 * MIB - PAGE}"),
        *(f"R 0 {PAGE} {PAGE}", f"m s r {PAGE} {2 * PAGE}", f"R 1 {2 * PAGE} {PAGE}", "g 1 0"),
        *(f"R 1 {PAGE} {3 * PAGE}", f"u 1 0 {PAGE}", f"m s r 0 {2 * PAGE}"),
        *(f"p 2 0 {PAGE} n", "C 2 0", f"g 2 {PAGE}", f"p 2 0 {PAGE} r", "g 2 0"),
        window="16M",
    )
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", "map: 0", "at 0: page0", f"at {2 * MIB}: page512"),
        *("at 0: aaaaaaaa", f"at {2 * MIB}: page512"),
        *("map: 0", "at 0: page0", f"at {PAGE}: aaaaaaaa", f"at {2 * MIB}: aaaaaaaa"),
        *("map: 0", f"at {PAGE}: page1", f"at {2 * PAGE}: page2", f"at {4 * MIB - PAGE}: aaaaaaaa"),
        *("remap: 0", "map: 0", "remap: 0", "at 0: page1", "remap: ENOMEM", "unmap: 0", "map: 0"),
        *("protect: 0", "call: EFAULT", f"at {PAGE}: page1", "protect: 0", "at 0: page0"),
    ]


@pytest.mark.parametrize("how", ["unmapped", "protected", "written"])
def test_what_is_not_to_be_reached_is_not(monitor: Monitor, how: str) -> None:
    buffer = numbered(monitor, 2)
    steps = {
        "unmapped": (f"u 0 0 {PAGE}", "g 0 0"),
        "protected": (f"p 0 0 {PAGE} n", "g 0 0"),
        "written": ("s 0 0 text",),
    }[how]
    machine = spawn(monitor, buffer, f"o {IN} r", f"m s r 0 {2 * PAGE}", "g 0 0", *steps)
    monitor.run(20)
    assert machine.fault is not None
    assert machine.fault.signal == "SIGSEGV"
    assert machine.stdout.decode().splitlines()[2] == "at 0: page0"
    assert (buffer.hold, buffer.read(0, 5)) == (Hold.OWNED, b"page0")


def test_a_large_one_is_neither_copied_nor_charged(open_monitor: Open) -> None:
    size = sized(64, 4) * MIB
    monitor = open_monitor()
    buffer = monitor.host.alloc(size)
    for page in range(size // PAGE):
        buffer.write(page.to_bytes(8, "little"), page * PAGE)
    machine = spawn(
        monitor,
        buffer,
        *(f"o {IN} r", f"m s r 0 {size}", f"S 0 {size}", f"m p r 0 {size}", f"S 1 {size}"),
        f"m p w 0 {size}",  # a copy has no room
        window=2 * size,
    )
    monitor.run(60)
    pages = size // PAGE
    total = f"sum: {pages * (pages - 1) // 2}"
    more = "map: ENOMEM" if size > 16 * MIB else "map: 0"
    assert lines(machine) == ["open: 0", "map: 0", total, "map: 0", total, more]


# ---- Writing ----


def test_it_is_written_in_place(monitor: Monitor) -> None:
    buffer = numbered(monitor, 3)
    frame = buffer.frame_number()
    machine = spawn_out(
        monitor,
        buffer,
        *(f"o {OUT} w", "i", f"m s w 0 {3 * PAGE}", "s 0 0 mapped", f"w {PAGE} written"),
        *(f"g 0 {PAGE}", "r 0", f"C 0 {2 * PAGE}", f"r {2 * PAGE}"),
        *(f"c 0 {PAGE} 7", "g 0 0", f"m s r 0 {PAGE}", f"p 1 0 {PAGE} w", "s 1 100 again"),
    )
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", f"size {3 * PAGE}, mode 100644", "map: 0", "write: 7"),
        *(f"at {PAGE}: written", "read: 8", "mapped", "call: 2", "read: 8", "/"),
        *("call: 7", "at 0: written", "map: 0", "protect: 0"),
    ]
    assert [buffer.read(at, 7) for at in (0, PAGE)] == [b"written", b"written"]
    assert (buffer.read(100, 5), buffer.read(2 * PAGE, 5)) == (b"again", b"/\0ge2")
    assert buffer.frame_number() == frame
    assert dict(machine.files) == {}


@_THE_MONITORS_OWN
def test_it_stays_as_large_as_it_is(monitor: Monitor) -> None:
    buffer = monitor.host.alloc(PAGE + 10)
    buffer.write(b"kept")
    machine = spawn_out(
        monitor,
        buffer,
        *(f"o {OUT} t", f"w {PAGE + 8} text", f"w {PAGE + 10} text", "t 5", f"t {PAGE + 10}", "i"),
    )
    monitor.run(20)
    assert lines(machine) == [
        *("open: 0", "write: 2", "write: ENOSPC", "truncate: EPERM", "truncate: 0"),
        f"size {PAGE + 10}, mode 100644",
    ]
    assert (buffer.read(0, 4), buffer.read(PAGE + 6, 4)) == (b"kept", b"\0\0te")


# ---- The way back ----


@pytest.mark.parametrize("writable", [False, True])
def test_what_has_been_reclaimed_is_nowhere(monitor: Monitor, writable: bool) -> None:
    buffer, watch = numbered(monitor, 2), Watch()
    steps = (f"m s {'w' if writable else 'r'} 0 {2 * PAGE}", "g 0 0", "*now", "r 0", "c 0 0 9")
    make = spawn_out if writable else spawn
    machine = make(
        monitor,
        buffer,
        *(f"o {OUT if writable else IN} {'w' if writable else 'r'}", *steps),
        *("w 0 text", f"p 0 0 {PAGE} r", f"m p w 0 {PAGE}", f"m s r 0 {PAGE}", "g 0 0"),
        stdout=watch,
    )

    def reclaim() -> None:
        monitor.host.reclaim(buffer)
        buffer.write(b"changed")

    watch.then = reclaim
    monitor.run(20)
    refused = ("call: EFAULT", "write: EIO") if writable else ("call: EBADF", "write: EBADF")
    assert watch.lines == [
        *("open: 0", "map: 0", "at 0: page0", "*now", "read: EIO", "", *refused),
        *("protect: 0", "map: EIO", "map: 0"),
    ]
    fault = machine.fault
    assert fault is not None
    (shown, *_) = [area for area in machine.guest.process.memory.areas.spans if area.delta]
    assert (fault.signal, fault.kind, fault.access) == ("SIGBUS", "access", "read")
    assert fault.address is not None
    assert machine.guest.process.memory.lent(fault.address) == fault.address
    assert "a page of a file that was lent, and has gone back" in fault.reason
    assert shown.delta
    assert buffer.read(0, 7) == b"changed"
    assert monitor.host.receive() is None


@_THE_MONITORS_OWN
def test_it_comes_back_however_the_program_ends(monitor: Monitor) -> None:
    for number, ending in enumerate(("exits", "crashes", "is killed", "never runs")):
        buffer, watch = numbered(monitor, 2), Watch()
        steps = [f"o {OUT} w", f"m s w 0 {PAGE}", "s 0 0 text", "*now"]
        steps += ["S 5 8"] if ending == "crashes" else []
        machine = spawn_out(monitor, buffer, *steps, stdout=watch, name=f"m{number}")
        if ending == "is killed":
            watch.then = lambda machine=machine: monitor.kill(machine)  # type: ignore[misc]
        if ending == "never runs":
            monitor.remove(machine)
        monitor.run(20)
        assert (machine.fault is None) == (ending == "exits"), ending
        back = monitor.host.receive()
        assert back is not None
        assert (back.operation, back.status) == (Operation.RETURN, Status.E_DEAD)
        assert (back.buffers, buffer.hold) == ((buffer,), Hold.OWNED)
        assert buffer.read(0, 4) == (b"page" if ending == "never runs" else b"text")
        monitor.host.release(buffer)


@_THE_MONITORS_OWN
def test_many_are_lent_together(monitor: Monitor) -> None:
    buffers = [numbered(monitor, 1) for _ in range(40)]
    files = {f"/in/{number}": buffer for number, buffer in enumerate(buffers)}
    for number, buffer in enumerate(buffers):
        buffer.write(b"file%02d" % number)
    machine = spawn(
        monitor,
        buffers[0],
        *(step for n in range(40) for step in (f"o /in/{n} {'w' if n % 2 else 'r'}", "r 0")),
        files=files,
        writable_files=[f"/in/{number}" for number in range(1, 40, 2)],
    )
    monitor.run(20)
    assert lines(machine)[2::3] == [f"file{number:02}" for number in range(40)]
    assert {buffer.hold for buffer in buffers} == {Hold.OWNED}


# ---- Errors ----


@_THE_MONITORS_OWN
def test_what_cannot_be_lent_is_refused_at_the_call(open_monitor: Open) -> None:
    monitor, other = open_monitor(pool="8M"), open_monitor(pool="1M")
    buffer, another = numbered(monitor, 1), numbered(monitor, 1)
    foreign, gone, lent = other.host.alloc(PAGE), numbered(monitor, 1), numbered(monitor, 1)
    large = numbered(monitor, 1024)
    monitor.host.release(gone)
    borrower = spawn(monitor, lent, name="borrower")
    before = monitor.audit()
    wrong: list[tuple[type[Exception], str, dict[str, object]]] = [
        (ConfigError, "another monitor", {"files": {IN: buffer, "/a": foreign}}),
        (ConfigError, "another file already", {"files": {IN: buffer, "/a": buffer}}),
        (ClosedError, "no longer the host's", {"files": {IN: buffer, "/a": gone}}),
        (GuestError, "E_LENT", {"files": {IN: buffer, "/a": lent}}),
        (GuestError, "E_WINDOW_FULL", {"files": {IN: buffer, "/a": large}}),
        (ConfigError, "'/b' is no buffer", {"files": {IN: buffer}, "writable_files": ["/b"]}),
        (ConfigError, "'/b' is no buffer", {"files": {"/b": b""}, "writable_files": ["/b"]}),
        (ArgumentTypeError, "a list of paths", {"files": {IN: buffer}, "writable_files": IN}),
        (ConfigError, "no path to offer", {"files": {"relative": buffer}}),
        (ConfigError, "is taken", {"files": {IN: buffer}, "name": "borrower"}),
        (ArgumentTypeError, "not int", {"files": {IN: buffer, "/a": 5}}),
    ]
    for kind, text, options in wrong:
        with pytest.raises(kind) as caught:
            spawn(monitor, buffer, **options)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (buffer.hold, large.hold, lent.hold) == (Hold.OWNED, Hold.OWNED, Hold.LENT), text
        assert monitor.audit(mappings=True) == before
        assert list(monitor.machines.values()) == [borrower]
        assert monitor.host.receive() is None
    files = {IN: buffer, "/a": another}
    machine = spawn(monitor, buffer, f"o {IN} r", "r 0", files=files, name="m")
    monitor.run(20)
    assert lines(machine) == ["open: 0", "read: 8", "page0"]


@_THE_MONITORS_OWN
def test_a_bare_guest_has_no_files(open_monitor: Open, test_guest: Callable[[str], object]) -> None:
    monitor = open_monitor(pool="1M")
    buffer = monitor.host.alloc(PAGE)
    for options in ({"files": {IN: buffer}}, {"writable_files": [IN]}):
        with pytest.raises(ConfigError, match="is a bare guest, which takes no"):
            monitor.spawn(test_guest("idle"), **options)  # type: ignore[arg-type]
    assert buffer.hold is Hold.OWNED


# ---- What is raised at any line ----

STEPS = (
    *(f"o {OUT} w", f"m s w 0 {2 * PAGE}", "s 0 0 mapped", f"w {PAGE} written", "r 0"),
    *(f"c 0 {PAGE} 7", "g 0 0", f"m p r 0 {2 * PAGE}", f"p 1 0 {PAGE} w", "s 1 0 mine", "g 1 0"),
    *(f"g 1 {PAGE}", f"u 1 0 {PAGE}", f"p 0 0 {PAGE} n", f"p 0 0 {PAGE} r", "g 0 0"),
)


def some(lines: int, count: int) -> Iterator[int]:
    step = 1 if EVERY else max(lines // count, 1)
    yield from range(1 + random.randrange(step), lines, step)


def counted(call: Callable[[], object], **where: str) -> int:
    with Tracer(**where) as tracer:  # type: ignore[arg-type]
        call()
    return tracer.lines


# What is raised in a finalizer Python drops.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.not_in_lanes("what Python raises is the same, whatever guests run on")
def test_a_spawn_that_is_cut_off_leaves_the_buffers_with_the_host(open_monitor: Open) -> None:
    monitor = open_monitor(pool="8M")
    buffers = numbered(monitor, 4), numbered(monitor, 4)

    def make() -> Machine:
        files = {IN: buffers[0], OUT: buffers[1]}
        return spawn(monitor, buffers[0], f"o {IN} r", "r 0", files=files, writable_files=[OUT])

    monitor.remove(make())
    lines_of_one = counted(lambda: monitor.remove(make()))
    while monitor.host.receive():
        pass
    before = monitor.audit()
    raised = 0
    for line in some(lines_of_one, sized(150, 5)):
        with Tracer(line) as tracer:
            make()
        raised += tracer.where is not None
        if monitor.machines:  # it was whole by then, but for its return
            assert [buffer.hold for buffer in buffers] == [Hold.LENT] * 2, tracer.where
            (machine,) = monitor.machines.values()
            monitor.run(20)
            assert machine.exit_code == 0, tracer.where
            monitor.remove(machine)
            while monitor.host.receive():
                pass
        assert [buffer.hold for buffer in buffers] == [Hold.OWNED] * 2, tracer.where
        assert [buffer.read(PAGE, 5) for buffer in buffers] == [b"page1"] * 2, tracer.where
        assert monitor.audit(mappings=True) == before, tracer.where
        assert not monitor.machines, tracer.where
        assert monitor.host.receive() is None, tracer.where
    assert raised >= sized(60, 2)


@pytest.mark.not_in_lanes("what Python raises is the same, whatever guests run on")
def test_a_call_that_is_cut_off_is_done_once(open_monitor: Open) -> None:
    monitor = open_monitor(pool="8M")

    def outcome(line: int | None) -> tuple[tuple[list[str], bytes], Tracer]:
        buffer = numbered(monitor, 2)
        machine = spawn_out(monitor, buffer, *STEPS)
        with Tracer(line, under="linux/") as tracer:
            monitor.run(20)
        monitor.run(20)
        found = lines(machine), buffer.read()
        monitor.remove(machine)
        monitor.host.release(buffer)
        return found, tracer

    expected, tracer = outcome(None)
    assert expected[0][-1] == "at 0: written"
    for line in some(tracer.lines, sized(150, 5)):
        found, tracer = outcome(line)
        assert found == expected, tracer.where

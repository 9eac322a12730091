"""What `pageferry bench` measures on a real KVM: every row, the floor, the mover that copies."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import TIMEOUT, members, pageferry, started
from kvm.puppets import Stage
from tests_support import IN_LANE, sized

from vmm import Monitor, host
from vmm.bench import floor as floor_module
from vmm.bench import ours, programs
from vmm.bench.copying import CopyMover
from vmm.bench.floor import Floor
from vmm.bench.machines import Command, Kind, Pair, allow_machines
from vmm.bench.plan import QUICK, QUICK_IN_LANE, Case, Composed, Effort, Unavailable, cases, measure
from vmm.bench.results import COLUMNS, COMPUTING, Row, load
from vmm.bench.scene import scene
from vmm.command.failure import EXIT_INTERRUPTED
from vmm.guest.bundled import ROOT, bundled_guest
from vmm.guest.compiler import BuildError
from vmm.kvm.structs import kvm_cpuid_entry2, kvm_regs, kvm_sregs
from vmm.memory.movers import RemapMover

pytestmark = pytest.mark.not_in_ept("what a bench measures; npt is a lane, too, and quicker")

Open = Callable[..., Monitor]

KIB, MIB = 1 << 10, 1 << 20
ROUNDS, MOST = sized((2, 10), (1, 3))
TINY = Effort(ROUNDS, MIB, 3, MOST, 0.01, (4 * KIB, 64 * KIB, 2 * MIB), 256)
SMALLER = pytest.mark.smaller_in_lanes(
    "a round instead of two, with a third of the messages; one row of each kind"
)
BUILT = ROOT / "bench" / "floor"
ALL, NO_COPY = ("ours", "floor", "copy"), ("ours", "floor")
MESSAGES = (*ALL, "pipe", "socket", "shared_memory")
CALLS, COMPUTED = ("ours", "floor", "host"), ("ours", "host")


@pytest.fixture
def prebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, as in a lane: building a floor takes longer than to measure with it."""
    monkeypatch.setattr(floor_module, "find_compiler", no_compiler)


def no_compiler() -> None:
    raise BuildError("no C compiler found: install one\nand so on")


# ---- Rows ----

# Their columns, and how many samples there are of each in a round.
EACH = max(5, MOST)
ROWS = {
    "inline_64B": (NO_COPY, EACH),
    "page": (ALL, EACH),
    "pingpong_page": (ALL, EACH),
    "batch64_scattered": (ALL, 5),
    "batch64_adjacent": (ALL, 5),
    "extent_untouched": (ALL, 10),
    "extent_touched": (ALL, 10),
    "extent_populated": (ALL, 10),
    "extent_in_huge": (ALL, 10),
    "lend_return": (NO_COPY, EACH),
    "share": (NO_COPY, EACH),
    "spawn_cold": (NO_COPY, MOST),
    "close": (NO_COPY, MOST),
    "spawn_1000": (NO_COPY, MOST),
    "close_1000": (NO_COPY, MOST),
    "alive_2": (ALL, EACH),
    "alive_10": (NO_COPY, EACH),
    "rate_1_worker": (NO_COPY, 1),
    "rate_2_workers": (("ours",), 1),
    "linux_getppid": (CALLS, MOST),
    "linux_read": (CALLS, MOST),
    "linux_start": (("ours", "bare", "host"), MOST),
    **dict.fromkeys(COMPUTING, (COMPUTED, 1)),
}
CASES = list(cases(TINY, ROWS))
ONE_OF_EACH_KIND = ("inline_64B", "page", "batch64_adjacent", "lend_return", "linux_getppid")
SOURCES = [ours.columns, programs.columns]


def columns_of(case: Case) -> tuple[str, ...]:
    """An inline message is copied by whatever mover."""
    columns, _ = ROWS[case.name]
    return NO_COPY if columns is ALL and case.bytes == 64 else columns


def measured(case: Case) -> Row:
    return measure(Composed(case, SOURCES), ROUNDS)


def check(row: Row, columns: tuple[str, ...], samples: int) -> None:
    for name in COLUMNS:
        column = row.column(name)
        assert (column is not None) == (name in columns), (name, row.note)
        if column is not None:
            assert column.n == samples * ROUNDS
            assert 0 < column.p50 <= column.p99
            assert math.isfinite(column.p99)


@SMALLER
@pytest.mark.usefixtures("prebuilt")
@pytest.mark.parametrize(
    "case",
    sized(CASES, [*cases(TINY, ONE_OF_EACH_KIND)]),
    ids=lambda case: f"{case.name}-{case.bytes}",
)
def test_a_row_has_the_columns_that_it_can_have(case: Case) -> None:
    row = measured(case)
    check(row, columns_of(case), ROWS[case.name][1])
    assert (row.name, row.bytes, row.unit) == (case.name, case.bytes, case.unit)
    alone = case.name == "rate_2_workers"
    assert row.note == ("floor: the floor has one thread" if alone else "")


def test_nothing_is_made_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ours, programs):
        monkeypatch.setattr(module, "Monitor", None)
    for case in CASES:
        floor = {"floor"} if case.name.startswith("rate_") else set()
        with contextlib.closing(Composed(case, SOURCES)) as bench:
            assert set(bench.columns()) == {*columns_of(case), *floor}


def test_a_floor_that_does_not_know_the_mover_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Monitor):
        def __init__(self, **options: object) -> None:
            super().__init__(mover="slots", **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ours, "Monitor", Other)
    with contextlib.ExitStack() as stack:
        (case,) = cases(TINY, ["lend_return"])
        with pytest.raises(Unavailable, match="the floor knows no slots"):
            ours.columns(case, stack)["floor"]()


def test_more_machines_than_there_may_be_descriptors_are_not_tried() -> None:
    with pytest.raises(Unavailable, match=r"descriptors needed, \d+ allowed"):
        allow_machines(1 << 40)


def test_this_thread_is_where_it_was_after_a_round() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), ours.on_one_processor():
        assert len(os.sched_getaffinity(0)) == 1
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_a_guests_fault_ends_the_measuring_with_it(open_monitor: Open) -> None:
    command = Command(Kind.INLINE, 5, depth=1)
    pair = Pair(open_monitor(), command)
    with pytest.raises(Exception, match="no such kind of bench"):
        pair.run(command._replace(kind=9))  # type: ignore[arg-type]


# ---- The mover that copies ----


def test_the_other_mover_copies_and_its_sender_still_sees_what_it_sent(
    open_monitor: Open,
) -> None:
    stage = Stage(open_monitor(mover=CopyMover, pool="64M"), "abc")
    assert stage.monitor.mover == "copy"
    a, b, c = stage.puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 100, 3)
    assert a.send(b, own) == 0
    (there,) = (e for e in b.one().extents[:1])
    assert b.read(there.gpa, 3) == [100, 101, 102]
    address = a.machine.peer.window.address(own.gpa // 4096 - a.base // 4096)
    b.write(there.gpa, 200, 3)
    assert ctypes.c_uint64.from_address(address).value == 100  # its own still, and not b's
    assert b.send(c, (there.gpa + 4096, 2)) == 0
    (last,) = (e for e in c.one().extents[:1])
    assert c.read(last.gpa, 2) == [201, 202]


# ---- The floor ----


def scene_of(monitor: Monitor, command: Command) -> bytes:
    pair = Pair(monitor, command)
    leaver = monitor.spawn(bundled_guest("bench_exit"))
    return scene((pair.sender, pair.receiver, leaver), monitor.doorbell, monitor.mover)


@pytest.fixture(params=["memfd", "remap"])
def any_floor(request: pytest.FixtureRequest, prebuilt: None) -> Iterator[Floor]:
    """A floor for each mover, whose receiver's queue takes 64 messages."""
    with Monitor(mover=request.param) as monitor:
        data = scene_of(monitor, Command(Kind.INLINE, 5))
    floor = Floor(data)
    yield floor
    floor.close()


KINDS = [
    Command(Kind.INLINE, 7, depth=1),
    Command(Kind.PAGES, 7, touch=True, depth=1),
    Command(Kind.PAGES, 3, 4, touch=True, depth=2),
    Command(Kind.PINGPONG, 7, touch=True),
    Command(Kind.PINGPONG, 3, 512, touch=True),
    Command(Kind.PINGPONG, 3, 512, touch=True, used=16),
    Command(Kind.PINGPONG, 7, 16, touch=True, populate=True),
    Command(Kind.BATCH, 3, 0, 64, touch=True),
    Command(Kind.BATCH, 3, 1, 64, touch=True),
    Command(Kind.LEND, 7, touch=True),
    Command(Kind.SHARE, 7, touch=True),
    Command(Kind.STREAM, 200),
]


@pytest.mark.smaller_in_lanes("once instead of twice")
def test_the_floor_does_whatever_it_is_asked_for_one_after_the_other(any_floor: Floor) -> None:
    for command in KINDS * sized(2, 1):
        samples = any_floor.ask(command.line())
        assert len(samples) == (1 if command.kind is Kind.STREAM else command.rounds), command
        assert all(0 < sample < 60e6 for sample in samples), command
    for what in ("spawn", "close"):
        assert len(any_floor.ask(f"{what} 3")) == 3
        assert min(any_floor.ask(f"{what} 2")) > 0


@pytest.mark.usefixtures("prebuilt")
def test_beside_many_machines_the_floor_has_memslots_as_ours_has(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does the same with them: what a message carries is written and read where it should be,
    or the guests panic. Nothing is mapped while it is at it.
    """
    monkeypatch.setattr(RemapMover, "many", 2)
    monitor = open_monitor(mover="remap")
    pair = Pair(monitor, Command(Kind.INLINE, 5))
    leaver = monitor.spawn(bundled_guest("bench_exit"))
    machines = (pair.sender, pair.receiver, leaver)
    floor = Floor(scene(machines, monitor.doorbell, "remap", 2))
    maps = Path(f"/proc/{floor._process.pid}/maps")
    for command in [kind for kind in KINDS if kind.pages < 512] * sized(2, 1):
        before = maps.read_text()
        samples = floor.ask(command.line())
        assert len(samples) == (1 if command.kind is Kind.STREAM else command.rounds), command
        assert maps.read_text() == before, command
    floor.close()


@pytest.mark.skipif(IN_LANE, reason="there is no compiler")
def test_the_floor_is_built_on_the_spot(
    open_monitor: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs: list[Path] = []
    start = floor_module._start
    monkeypatch.setattr(
        floor_module,
        "_start",
        lambda program, data: (programs.append(program), start(program, data))[1],
    )
    data = scene_of(open_monitor(), Command(Kind.INLINE, 5))
    floor = Floor(data)
    (program,) = programs
    assert program.is_file()
    assert program != BUILT
    assert len(floor.ask(Command(Kind.INLINE, 5, depth=1).line())) == 5
    floor.close()
    assert not program.parent.exists()
    floor.close()


def test_a_scene_read_again_has_the_memory_and_the_registers_of_its_machines(
    open_monitor: Open,
) -> None:
    monitor = open_monitor(pool="16M")
    machines = [
        monitor.spawn(bundled_guest(name), window="2M")
        for name in ("bench_sender", "bench_receiver", "bench_exit")
    ]
    stream = io.BytesIO(scene(machines, monitor.doorbell, "memfd", 7))
    magic, doorbell, mover, leaves, *beside = struct.unpack("<8s5I", stream.read(28))
    assert (magic, doorbell, mover) == (b"PFSCENE1", monitor.doorbell, 0)
    assert beside == [7, (1 << 32) - 1]  # with `memfd` there is no number that is too many
    stream.read(leaves * ctypes.sizeof(kvm_cpuid_entry2))
    for machine in machines:
        guest, window = machine.guest, machine.window
        size, *placed, chunks = struct.unpack("<4Q", stream.read(32))
        assert (size, placed) == (guest.memory.region.size, [window.base, window.size])
        assert stream.read(ctypes.sizeof(kvm_sregs)) == bytes(guest.vcpu.get_sregs())
        assert stream.read(ctypes.sizeof(kvm_regs)) == bytes(guest.vcpu.get_regs())
        memory = bytearray(size)
        for _ in range(chunks):
            address, length = struct.unpack("<2Q", stream.read(16))
            memory[address : address + length] = stream.read(length)
        assert memory == guest.memory.read(0, size)
    assert stream.read() == b""


@pytest.mark.usefixtures("prebuilt")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: b"", "the scene is too short"),
        (lambda data: b"PFSCENE9" + data[8:], "is no scene"),
        (lambda data: data[:-1], "the scene is too short"),
        (lambda data: data[:100], "the scene is too short"),
    ],
)
def test_what_is_no_scene_is_said_to_be_none(
    open_monitor: Open, spoil: Callable[[bytes], bytes], says: str
) -> None:
    data = scene_of(open_monitor(), Command(Kind.INLINE, 5))
    with pytest.raises(Unavailable, match=rf"^the floor has ended: .*{says}$"):
        Floor(spoil(data))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("run 9 1 1 1 0 0 64 0", r'machine \d+ rang 6: "no such kind of bench"'),
        ("run 1 99999 1 1 0 0 1 0", r'machine \d+ rang 6: ".*BENCH_SAMPLES'),
        ("nonsense", "bad command: nonsense"),
    ],
)
def test_a_floor_whose_guests_stop_says_why_and_then_that_it_has_ended(
    open_monitor: Open, prebuilt: None, asked: str, says: str
) -> None:
    floor = Floor(scene_of(open_monitor(), Command(Kind.INLINE, 5)))
    try:
        with pytest.raises(Unavailable, match=f"^the floor has ended: {says}"):
            floor.ask(asked)
    finally:
        floor.close()


def test_a_floor_that_was_killed_has_ended(open_monitor: Open, prebuilt: None) -> None:
    floor = Floor(scene_of(open_monitor(), Command(Kind.INLINE, 5)))
    floor._process.kill()
    floor._process.wait()
    with pytest.raises(Unavailable, match=r"^the floor has ended: status -9$"):
        floor.ask("spawn 1")
    floor.close()


def test_a_host_without_a_compiler_takes_the_floor_of_the_package_or_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prebuilt: None
) -> None:
    assert floor_module.program_of("floor", tmp_path) == BUILT
    source = tmp_path / "floor.c"
    monkeypatch.setattr(floor_module, "_SOURCES", tmp_path)
    with pytest.raises(Unavailable, match="source of floor is not installed"):
        floor_module.program_of("floor", tmp_path)
    shutil.copy(ROOT / "bench" / "floor.c", source)
    with pytest.raises(Unavailable, match=r"^no floor: no C compiler found: install one$"):
        floor_module.program_of("floor", tmp_path)


def test_a_floor_that_may_not_be_run_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prebuilt: None
) -> None:
    source = tmp_path / "floor.c"
    source.touch()
    (tmp_path / "floor").write_text("no program")
    monkeypatch.setattr(floor_module, "_SOURCES", tmp_path)
    with pytest.raises(Unavailable, match=r"^no floor: .*/floor: Permission denied"):
        Floor(b"")


# ---- The command ----


@pytest.mark.smaller_in_lanes("--quick is quicker there: a tenth of the messages")
def test_the_command_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    with started(tmp_path, "bench", "--quick", "--rows", "inline_64B,page", "--json", file) as one:
        out, err = one.communicate(timeout=TIMEOUT)
    assert (one.returncode, err) == (0, "")
    assert "inline_64B" in out
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]
    found = load(file)
    facts = host.inspect()
    assert (found.host["backend"], found.host["ring"]) == (facts.backend.value, facts.ring)
    assert (found.host["emulated"], found.host["lane"]) == (
        IN_LANE,
        os.environ.get("PAGEFERRY_LANE"),
    )
    effort = QUICK_IN_LANE if IN_LANE else QUICK
    for row in found.rows:
        assert row.note == ""
        for name in COLUMNS:
            column = row.column(name)
            none = name not in MESSAGES or (name == "copy" and row.name == "inline_64B")
            assert (column is None) == none
            assert column is None or (column.p50 > 0 and column.n == 3 * effort.most)


NO_FLOOR = """from pathlib import Path
from vmm.bench import floor
from vmm.guest.compiler import BuildError
from vmm.kvm.structs import kvm_cpuid_entry2, kvm_regs, kvm_sregs
def none():
    raise BuildError("no C compiler found: install one")
floor.find_compiler = none
floor._SOURCES = Path({source!r})
from vmm.command.cli import main
main(prog_name='pageferry')"""


def test_without_a_floor_the_command_says_so_and_measures_the_rest(tmp_path: Path) -> None:
    source = tmp_path / "floor.c"
    source.touch()
    file = tmp_path / "new.json"
    code = NO_FLOOR.format(source=str(tmp_path))
    ended = pageferry("bench", "--quick", "--rows", "inline_64B", "--json", file, code=code)
    assert (ended.code, ended.err) == (0, "")
    (row,) = load(file).rows
    assert row.floor is None
    assert row.ours is not None
    assert row.note == "floor: no floor: no C compiler found: install one"
    assert row.note in " ".join(ended.out.split())


@pytest.mark.smaller_in_lanes("three moments instead of five")
@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5, *sized([1.0, 2.0], [])])
def test_ctrl_c_leaves_no_floor_and_no_files(tmp_path: Path, moment: float) -> None:
    with started(tmp_path, "bench", "--rows", "page,inline_64B,lend_return") as process:
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (EXIT_INTERRUPTED, "pageferry: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert group(process.pid) == []


def group(leader: int) -> list[str]:
    """Return the names of the processes of a group, once those that end anyway have."""
    until = time.monotonic() + 5
    while found := members(leader):
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return found


def test_the_packages_own_floor_runs_here() -> None:
    said = subprocess.run([BUILT], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (1, "floor: usage: floor SCENE\n")

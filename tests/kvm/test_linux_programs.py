"""Programs for Linux do in a machine what they do on this system: each is run on both."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from busybox_cases import CASES as BUSYBOX_CASES
from kvm.linux_runs import Job, run_there, spawn
from linux_case import Case, Outcome, run_here
from linux_programs import (
    CASES,
    CRASH_CASES,
    JOB_CASES,
    LIBCS,
    SOURCES,
    busybox,
    linux_program,
    system_program,
)
from tests_support import IN_LANE, sized

from vmm import GuestFault, Monitor
from vmm.linux.machine import LinuxMachine

pytestmark = pytest.mark.timeout(300)
SMALLER = pytest.mark.smaller_in_lanes("a few programs: each takes a hundred times as long there")
NO_COMPILER = pytest.mark.not_in_lanes("no compiler there")

_SAMPLE = slice(0, None, sized(1, 30))
_GROUPS = [BUSYBOX_CASES[_SAMPLE][start : start + 25] for start in range(0, 150, 25)]
GROUPS = [group for group in _GROUPS if group]


def check(jobs: Sequence[Job], work: Path, *, rooted: bool) -> None:
    """Run programs here and there; hold each to its outcome here."""

    def here(number: int) -> Outcome:
        case, program = jobs[number]
        place = work / f"here-{number}"
        place.mkdir()
        return run_here(case, program, place)

    with ThreadPoolExecutor(2) as pool:
        expected = list(pool.map(here, range(len(jobs))))
    found = run_there(jobs, work / "there" if rooted else None)
    for (case, _), wanted, got in zip(jobs, expected, found, strict=True):
        assert wanted.code == case.code, case.name
        assert got == wanted, case.name


@SMALLER
@pytest.mark.parametrize("rooted", [False, True], ids=["given files", "shown a directory"])
@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: cases[0].name)
def test_busybox(cases: Sequence[Case], rooted: bool, tmp_path: Path) -> None:
    if IN_LANE and rooted:
        pytest.skip("once is enough there")
    check([(case, busybox()) for case in cases], tmp_path, rooted=rooted)


@NO_COMPILER
@pytest.mark.parametrize("libc", LIBCS)
def test_programs_in_c_and_cpp(libc: str, tmp_path: Path) -> None:
    jobs = [(case, linux_program(case.name, libc)) for case in CASES if case.name != "heap"]
    check(jobs, tmp_path, rooted=libc == "musl")


@NO_COMPILER
@pytest.mark.parametrize("workers", [1, 2])
def test_vector_registers_are_a_programs_own(workers: int) -> None:
    with Monitor(pool="2M", workers=workers, console=lambda name, line: None) as monitor:
        cases = [Case(f"v{seed}", ("vectors", str(seed))) for seed in range(4)]
        machines = [spawn(monitor, case, linux_program("vectors"), case.name) for case in cases]
        monitor.run(timeout=60)
        printed = [machine.stdout for machine in machines]
    assert printed == [b"0 of the values differ\n"] * 4


@NO_COMPILER
@pytest.mark.parametrize("libc", LIBCS)
def test_memory_to_its_limit(libc: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "heap")
    check([(case, linux_program("heap", libc))], tmp_path, rooted=False)


@NO_COMPILER
@pytest.mark.parametrize("case", JOB_CASES, ids=lambda case: case.name)
def test_libraries_do_a_job(case: Case, tmp_path: Path) -> None:
    check([(case, linux_program(case.name))], tmp_path, rooted=True)


@NO_COMPILER
@pytest.mark.parametrize("libc", LIBCS)
def test_crashes_end_in_the_same_signal(libc: str, tmp_path: Path) -> None:
    jobs = [(case, linux_program(case.argv[0], libc)) for case in CRASH_CASES]
    check(jobs, tmp_path, rooted=False)


def crashed(how: str, libc: str) -> tuple[GuestFault, LinuxMachine]:
    with Monitor(pool="2M", console=lambda name, line: None) as monitor:
        case = Case(how, ("crashes", how))
        machine = spawn(monitor, case, linux_program("crashes", libc), "crashing")
        monitor.run(timeout=60)
        assert machine.fault is not None
        return machine.fault, machine


@NO_COMPILER
@pytest.mark.parametrize("libc", LIBCS)
def test_a_crash_reads_as_in_a_debugger(libc: str) -> None:
    fault, machine = crashed("segfault", libc)
    lines = (SOURCES / "crashes.c").read_text().splitlines()
    assert (fault.signal, fault.address, fault.access) == ("SIGSEGV", 0x1234, "write")
    assert (fault.place.symbol, fault.place.file) == ("store", "crashes.c")
    assert fault.place.line == 1 + next(n for n, line in enumerate(lines) if "= 1;" in line)
    assert fault.registers is not None
    assert fault.registers["rdi"] == 0x1234
    assert fault.registers["rip"] == fault.rip
    assert machine.guest.layout.stack.base < fault.registers["rsp"] < machine.guest.layout.stack.end
    assert fault.calls[-1].startswith("write(2, ")
    assert (machine.stdout, machine.stderr) == (b"about to\n", b"a last word\n")
    assert "SIGSEGV: #PF page fault, write of 0x1234" in str(fault)


@NO_COMPILER
def test_who_ends_itself_by_a_signal_is_told_of_where_it_asked_for_it() -> None:
    fault, _ = crashed("term", "glibc")
    assert (fault.kind, fault.signal) == ("signal", "SIGTERM")
    assert str(fault.place.symbol).strip("_") == "kill"
    assert fault.calls[-2:] == ("getpid() = 1000", "kill(1000, 15) = ?")
    assert fault.registers is not None
    assert (fault.registers["rip"], fault.registers["rdi"]) == (fault.rip, 1000)
    fault, _ = crashed("abort", "glibc")
    assert fault.calls[-1].endswith(", 6) = ?")
    fault, _ = crashed("pipe", "glibc")
    assert fault.signal == "SIGPIPE"
    assert str(fault.place.symbol).endswith("write")


@NO_COMPILER
@pytest.mark.parametrize("kind", ["-static-pie", "-pie"])
def test_a_program_that_is_put_anywhere_has_symbols_and_lines(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "crashes"
    command = ["cc", "-g", "-O1", "-w", kind, str(SOURCES / "crashes.c"), "-o", str(program)]
    linux_program("crashes")  # whether there is a compiler
    subprocess.run(command, check=True)
    with Monitor(pool="2M", console=lambda name, line: None) as monitor:
        root = Path("/") if kind == "-pie" else None
        machine = spawn(monitor, Case(kind, ("crashes", "segfault")), program, "pie", root=root)
        monitor.run(timeout=60)
    assert machine.fault is not None
    assert (machine.fault.place.symbol, machine.fault.place.file) == ("store", "crashes.c")


@NO_COMPILER
def test_only_the_stack_overflows_as_a_stack() -> None:
    fault, machine = crashed("overflow", "glibc")
    assert "stack overflow" in fault.reason
    assert fault.place.symbol == "deep"
    assert fault.address is not None
    assert fault.address < machine.guest.layout.stack.base
    fault, machine = crashed("unmapped", "glibc")  # an area that began right below the stack's gap
    assert "stack overflow" not in fault.reason


# What Debian ships, dynamic, with the system as its root: the case's files come on top of it.
_TEXT = b"The quick brown fox\njumps over the lazy dog\n" * 50
_NUMBERS = b"".join(b"%d\n" % (n * n % 1009) for n in range(3000))
_PYTHON = """
import collections, csv, datetime, decimal, glob, hashlib, itertools, json, math, mmap, os, pathlib
import random, re, select, shutil, signal, sqlite3, stat, struct, sys, tempfile, time, zlib
print(sys.version_info[:3], sys.argv, sys.executable, os.getcwd(), sys.getfilesystemencoding())
print(json.loads('{"a": [1, 2.5, null]}'), re.findall(r"\\w+", "ab cd"), math.pi, 2**200)
print(hashlib.sha256(b"x" * 100000).hexdigest(), zlib.crc32(zlib.compress(b"abc" * 1000)))
with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / "file"
    path.write_text("hello")
    print(path.stat().st_size, stat.filemode(path.stat().st_mode), path.with_name("no").exists())
    path.rename(path.with_name("other"))
    shutil.copy(path.with_name("other"), path)
    print(sorted(os.listdir(name)), [p.name for p in sorted(pathlib.Path(name).iterdir())])
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        print(view[:])
    base = sqlite3.connect(pathlib.Path(name) / "base.db")
    base.execute("create table t(a, b)")
    base.executemany("insert into t values (?, ?)", [(n, str(n)) for n in range(1000)])
    base.commit()
    print(base.execute("select sum(a), max(b) from t").fetchall())
    base.close()
print(os.path.exists(name), decimal.Decimal(1) / 7, datetime.datetime(2020, 1, 2).isoformat())
for wrong in (lambda: open("/none/x"), lambda: os.mkdir("/usr"), lambda: os.read(77, 1)):
    try:
        wrong()
    except OSError as error:
        print(repr(error))
reader, writer = os.pipe()
os.write(writer, b"in a pipe")
print(os.read(reader, 100), select.select([reader], [writer], [], 0.01)[0])
os.close(reader)
try:
    os.write(writer, b"x")
except BrokenPipeError as error:
    print(error)
signal.signal(signal.SIGUSR1, lambda *_: None)
print(random.Random(3).random(), os.urandom(8) != os.urandom(8), os.environ["HOME"])
print(sum(n * n for n in range(100000)), sorted(glob.glob("/usr/bin/python3*"))[:1])
print(sys.stdin.read().split())
sys.exit(3)
"""
SYSTEM = (
    Case("sort numbers", ("sort", "-n"), _NUMBERS),
    Case("sort a file", ("sort", "-u", "/etc/services")),
    Case(
        "awk",
        ("mawk", '{ n[$1]++ } END { print length(n), NR; printf "%.3f", atan2(0, -1) }'),
        _TEXT,
    ),
    Case("grep", ("grep", "-nE", "qu|laz"), _TEXT),
    Case("grep recursively", ("grep", "-rl", "^root:", "/etc/passwd", "/etc/apt")),
    Case("bc", ("bc", "-l"), b"scale=40; 4*a(1)\n2^300\n"),
    Case("sed", ("sed", "-E", "s/(quick) (brown)/\\2 \\1/;3q"), _TEXT),
    Case("xz and back", ("xz", "-c", "-T1"), _NUMBERS),
    Case("python", ("python3", "-S", "-c", _PYTHON, "argument"), b"to be read", code=3),
    Case(
        "bash",
        ("bash", "-c", "read x; [[ $x =~ t.* ]] && echo ${x^^} $((7 ** 20)) {a,b}{1,2}"),
        b"text",
    ),
    Case("ls", ("ls", "-ld", "/etc/passwd", "/bin")),
    Case("find", ("find", "/etc/apt", "-type", "f", "-newer", "/none"), code=1),
)


@NO_COMPILER
def test_dynamic_programs_of_this_system(tmp_path: Path) -> None:
    jobs = [(case, system_program(case.argv[0])) for case in SYSTEM]
    expected = [
        subprocess.run(
            case.argv,
            executable=program,
            input=case.stdin,
            env=case.environment,
            cwd=Path.cwd(),
            capture_output=True,
        )
        for case, program in jobs
    ]
    found = run_there(jobs, root=Path("/"))
    for (case, _), wanted, got in zip(jobs, expected, found, strict=True):
        assert got.stdout == wanted.stdout, case.name
        assert got.stderr == wanted.stderr, case.name
        assert (got.code, wanted.returncode) == (case.code, case.code), case.name


@pytest.mark.parametrize(("applet", "printed"), [("wc", b"1 3 17"), ("rev", b"ereh sdrow eerht")])
def test_a_program_is_called_what_its_file_is_called_be_it_a_link(
    applet: str, printed: bytes, tmp_path: Path
) -> None:
    link = tmp_path / applet
    (tmp_path / "busybox").write_bytes(busybox().read_bytes())
    link.symlink_to("busybox")
    case = Case(applet, (applet,), b"three words here\n")
    (found,) = run_there([(case, link)], root=tmp_path)
    assert found.stdout.split() == printed.split()


def test_what_is_not_served_is_counted() -> None:
    with Monitor(pool="2M", console=lambda name, line: None) as monitor:
        case = Case("pipeline", ("busybox", "sh", "-c", "echo a | cat"))
        machine = spawn(monitor, case, busybox(), "pipeline")
        monitor.run(timeout=60)
    assert machine.exit_code
    assert b"can't fork: Function not implemented" in machine.stderr
    assert machine.not_served == {"clone": 1}


@NO_COMPILER
def test_a_timer_that_is_started_is_not_served() -> None:
    with Monitor(pool="2M", console=lambda name, line: None) as monitor:
        script = "import signal; signal.setitimer(signal.ITIMER_REAL, 0); signal.setitimer(0, 9)"
        case = Case("timer", ("python3", "-S", "-c", script), code=1)
        machine = spawn(monitor, case, system_program("python3"), "timer", root=Path("/"))
        monitor.run(timeout=60)
    assert machine.stderr.endswith(b"[Errno 38] Function not implemented\n")
    assert machine.not_served == {"setitimer": 1}

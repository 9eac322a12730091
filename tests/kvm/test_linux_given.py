"""What a program is given, from Python, and what is taken from it: streams, files, limits, time."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from linux_programs import busybox, system_program

from vmm import ClosedError, ConfigError, LinuxMachine, Monitor, PageferryError
from vmm.errors import ArgumentTypeError

pytestmark = pytest.mark.not_in_lanes("how a program is spawned, whatever KVM there is")
Spawn = Callable[..., LinuxMachine]


@pytest.fixture
def lines() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def monitor(lines: list[tuple[str, str]]) -> Iterator[Monitor]:
    with Monitor(pool="2M", console=lambda name, line: lines.append((name, line))) as monitor:
        yield monitor


@pytest.fixture
def spawn(monitor: Monitor) -> Spawn:
    """Spawn busybox."""

    def make(*args: str, **options: Any) -> LinuxMachine:
        machine = monitor.spawn(busybox(), args=args, window="2M", **options)
        assert isinstance(machine, LinuxMachine)
        return machine

    return make


@contextlib.contextmanager
def running(monitor: Monitor) -> Iterator[None]:
    """Run in another thread; the block's end waits for it."""
    thread = threading.Thread(target=monitor.run, args=(30,))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- Streams ----


def test_input_is_bytes_or_any_binary_file(monitor: Monitor, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    with (tmp_path / "file").open("rb") as file, (tmp_path / "file").open() as text:
        sources = {
            "bytes": b"bytes",
            "array": bytearray(b"array"),
            "io": io.BytesIO(b"x" * 200_000),
            "file": file,
            "text": text,  # its bytes
            "pipe": os.fdopen(reader, "rb", buffering=0),
        }
        machines = {name: spawn("cat", name=name, stdin=what) for name, what in sources.items()}
        monitor.run(timeout=30)
        sources["pipe"].close()
    assert {name: machine.stdout for name, machine in machines.items()} == {
        **{"bytes": b"bytes", "array": b"array", "io": b"x" * 200_000},
        **{"file": b"from a file", "text": b"from a file", "pipe": b"from a pipe"},
    }


def test_who_waits_for_input_holds_up_nobody(monitor: Monitor, spawn: Spawn) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as source:
        waits = spawn("cat", name="waits", stdin=source)
        works = spawn("sha256sum", "/in/data", name="works", files={"/in/data": bytes(1 << 16)})
        with running(monitor):
            until(lambda: works.exit_code == 0)
            assert waits.stdout == b""
            os.write(writer, b"late")
            until(lambda: waits.stdout == b"late")
            assert waits.exit_code is None
            os.close(writer)
        assert waits.exit_code == 0


def test_input_may_have_a_descriptor_of_any_number(monitor: Monitor, spawn: Spawn) -> None:
    """select(2) takes those below 1,024."""
    import fcntl
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2000, hard), hard))
    reader, writer = os.pipe()
    try:
        high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1500)
        os.close(reader)
        os.write(writer, b"high")
        os.close(writer)
        with os.fdopen(high, "rb", buffering=0) as source:
            machine = spawn("cat", stdin=source)
            monitor.run(timeout=30)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (machine.fault, machine.stdout) == (None, b"high")


def test_output_is_kept_printed_or_written(
    monitor: Monitor, spawn: Spawn, lines: list[tuple[str, str]], tmp_path: Path
) -> None:
    script = ("sh", "-c", "echo out; echo err >&2; printf 'no end'")
    kept = spawn(*script, name="kept")
    spawn(*script, name="printed", stdout="console", stderr="console")
    file = io.BytesIO()
    with (tmp_path / "text").open("w") as text:
        written = spawn(*script, name="written", stdout=file, stderr=text)
        monitor.run(timeout=30)
    assert (kept.stdout, kept.stderr) == (b"out\nno end", b"err\n")
    assert lines == [("printed", "out"), ("printed", "err"), ("printed", "no end")]
    assert (file.getvalue(), (tmp_path / "text").read_text()) == (b"out\nno end", "err\n")
    assert (written.stdout, written.stderr) == (b"", b"")


# ---- Files ----


def test_what_it_writes_is_seen_while_it_runs_and_when_it_is_gone(
    monitor: Monitor, spawn: Spawn
) -> None:
    reader, writer = os.pipe()
    script = "echo part > /out/a; read x; echo $x >> /out/a; echo b > /tmp/b"
    with os.fdopen(reader, "rb", buffering=0) as source:
        machine = spawn("sh", "-c", script, stdin=source)
        with running(monitor):
            until(lambda: machine.files.get("/out/a") == b"part\n")
            os.write(writer, b"more\n")
            os.close(writer)
    assert dict(machine.files) == {"/out/a": b"part\nmore\n", "/tmp/b": b"b\n"}
    monitor.remove(machine)
    assert machine.files["/out/a"] == b"part\nmore\n"
    with pytest.raises(KeyError):
        machine.files["/out/none"]


def test_what_it_may_write_is_limited(monitor: Monitor, spawn: Spawn) -> None:
    machine = spawn("dd", "if=/dev/zero", "of=/out/a", "bs=1k", "count=100", disk="64K")
    monitor.run(timeout=30)
    assert machine.exit_code == 1
    assert b"No space left on device" in machine.stderr
    assert 32 << 10 <= len(machine.files["/out/a"]) <= 64 << 10


def test_what_is_offered_is_read_and_not_changed(
    monitor: Monitor, spawn: Spawn, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"data")
    script = "cat /in/x /in/y /deep/er/z; echo new > /in/x || echo new > /in/new"
    files = {"/in/x": path, "/in/y": b"bytes", "/deep/er/z": bytearray(b"array")}
    machine = spawn("sh", "-c", "cat() { read a < $1; }; " + script, files=files)
    other = spawn("cat", "/in/x", "/in/y", "/deep/er/z", name="other", files=files)
    monitor.run(timeout=30)
    assert other.stdout == b"databytesarray"
    assert machine.exit_code == 0
    assert path.read_bytes() == b"data"


# ---- Limits, and time ----


def test_those_who_sleep_need_no_thread(monitor: Monitor, spawn: Spawn) -> None:
    machines = [spawn("sleep", "0.3", name=f"s{number}") for number in range(20)]
    threads = threading.active_count()
    before = time.monotonic()
    with running(monitor):
        time.sleep(0.1)
        assert threading.active_count() <= threads + 3  # who runs, the clock
    assert time.monotonic() - before < 20 * 0.3
    assert [machine.exit_code for machine in machines] == [0] * 20


def test_a_program_that_is_stopped_is_told_of_where_it_was(monitor: Monitor, spawn: Spawn) -> None:
    sleeps = spawn("sleep", "1000", name="sleeps")
    counts = spawn("awk", "BEGIN { print 1; fflush(); while (1) x++ }", name="counts")
    prints = spawn("yes", name="prints", stdout=io.BytesIO())
    monitor.run(timeout=0.5)
    for machine in sleeps, counts, prints:
        fault = machine.fault
        assert fault is not None
        assert (fault.kind, fault.signal) == ("timeout", None)
        assert fault.registers is not None
        assert fault.rip == fault.registers["rip"]
        assert 0x400000 <= fault.rip < 0x800000, hex(fault.rip)  # in busybox, and no gate of ours
    assert sleeps.fault is not None
    assert re.match(r"(clock_)?nanosleep\(.* = \?$", sleeps.fault.calls[-1])
    assert counts.fault is not None
    assert counts.fault.printed == ("1",)
    assert prints.fault is not None
    assert prints.fault.printed == ("y",) * 8


# ---- What cannot be meant ----


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"files": {"/a": "text"}}, ArgumentTypeError, "/a must be a Path, bytes or a Buffer"),
        ({"files": {"a": b""}}, ConfigError, "'a' is no path to offer a file at"),
        ({"files": {"/a/../b": b""}}, ConfigError, "is no path to offer a file at"),
        ({"files": {"/a": Path("/none")}}, ConfigError, "/none cannot be offered: No such file"),
        ({"files": {"/a": Path("/")}}, ConfigError, "/ cannot be offered: it is not a regular"),
        ({"root": "/none"}, ConfigError, "root /none cannot be shown: No such file"),
        ({"root": "/etc/passwd"}, ConfigError, "root /etc/passwd cannot be shown: Not a directory"),
        ({"env": {"A": 1}}, ArgumentTypeError, "env must be texts, not int"),
        ({"env": {"A=": "1"}}, ConfigError, "env: 'A=' is no name of a variable"),
        ({"env": ["A"]}, ArgumentTypeError, "env must be a mapping, not list"),
        ({"args": "one"}, ArgumentTypeError, "args must be a list of texts, not str"),
        ({"args": [1]}, ArgumentTypeError, "args must be texts, not int"),
        ({"args": ["a\0b"]}, ConfigError, "has a zero byte in it"),
        ({"stdin": "text"}, ArgumentTypeError, "stdin is text, not bytes"),
        ({"stdin": io.StringIO()}, ArgumentTypeError, "stdin must be a binary file"),
        ({"stdout": io.StringIO()}, ArgumentTypeError, "stdout must be a binary file"),
        ({"stderr": Path("x")}, ArgumentTypeError, 'must be None, "console" or a binary file'),
        ({"clock": "slow"}, ConfigError, "clock 'slow' is none of real, frozen"),
        ({"seed": "x"}, ArgumentTypeError, "seed must be an int, not str"),
        ({"disk": 0}, ConfigError, "disk 0 is not a positive whole number"),
        ({"memory": "4K"}, ConfigError, "memory of 4K is not between"),
        ({"memory": "1M"}, PageferryError, "more than the 1 MiB of memory"),
        ({"stack": "1G"}, ConfigError, "stack of 1G is not between"),
        ({"strace": True}, ArgumentTypeError, "strace must be a function of a text, not bool"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(
    options: dict[str, Any], error: type[Exception], what: str, monitor: Monitor
) -> None:
    with pytest.raises(error) as caught:
        monitor.spawn(busybox(), **options)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not monitor.machines


def test_a_dynamic_program_wants_a_root(monitor: Monitor) -> None:
    program = system_program("sort")
    with pytest.raises(PageferryError, match=r"dynamically linked: link it .* \(root=, --root\)$"):
        monitor.spawn(program)
    with pytest.raises(ConfigError, match=r"its interpreter /lib64/.* is not in root"):
        monitor.spawn(program, root=Path(__file__).parent)


# ---- System calls, told of ----


def test_each_call_is_told_of_once_and_what_is_raised_then_loses_nothing(
    monitor: Monitor, spawn: Spawn
) -> None:
    told: list[str] = []

    def strace(call: str) -> None:
        told.append(call)
        if len(told) % 5 == 0:
            raise ZeroDivisionError

    plain: list[str] = []
    one = spawn("sh", "-c", "echo a > /out/x; echo b >> /out/x; echo done", strace=strace)
    other = spawn(
        *("sh", "-c", "echo a > /out/x; echo b >> /out/x; echo done"),
        name="other",
        strace=plain.append,
    )
    raised = 0
    while one.exit_code is None or other.exit_code is None:
        try:
            monitor.run(timeout=30)
        except ZeroDivisionError:
            raised += 1
    assert (one.stdout, one.files["/out/x"], one.exit_code) == (b"done\n", b"a\nb\n", 0)
    assert raised == len(told) // 5 > 3

    def names(calls: list[str]) -> list[str]:
        return [call.partition("(")[0] for call in calls]

    assert names(told) == names(plain)
    assert any(call.startswith('openat(AT_FDCWD, "/out/x", ') for call in told)
    assert told[-1] == "exit_group(0) = ?"


def test_a_closed_monitor_says_so_to_who_spawns_a_program() -> None:
    with Monitor(pool="16M") as monitor:
        pass
    with pytest.raises(ClosedError, match="the monitor has been closed"):
        monitor.spawn(busybox())

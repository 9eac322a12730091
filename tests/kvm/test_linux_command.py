"""`pageferry run` with programs for Linux, as a user runs it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command import Ended, command, environment, one_line, pageferry
from linux_programs import busybox, linux_program, system_program

pytestmark = pytest.mark.not_in_lanes("options, output and exit codes of the command; no compiler")
SMALL = ("--window", "2M")


def run(*arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> Any:
    """Run `pageferry run` with something on its standard input; all is bytes."""
    return subprocess.run(
        command("run", *SMALL, *arguments),
        input=stdin,
        capture_output=True,
        env=environment(),
        cwd=cwd,
        timeout=60,
    )


def test_a_program_gets_its_arguments_and_a_file_of_the_hosts(tmp_path: Path) -> None:
    data = tmp_path / "big"
    data.write_bytes(bytes(range(256)) * 5000)
    ended = pageferry(
        *("run", "--file", f"/in/data={data}", busybox(), "--", "sha256sum", "/in/data")
    )
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert ended == Ended(0, f"{digest}  /in/data\n", "")


def test_a_program_alone_reads_and_prints_bytes_as_they_are() -> None:
    data = bytes(range(256)) * 1000
    done = run(busybox(), "--", "cat", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_what_follows_two_dashes_is_the_programs_whatever_it_is() -> None:
    words = ("echo", "--audit", "--", "-h", "--mover=none", "é")
    assert pageferry("run", busybox(), "--", *words).out == " ".join(words[1:]) + "\n"


def test_who_has_forgotten_the_dashes_is_told() -> None:
    ended = pageferry("run", busybox(), "sha256sum", "/in/data")
    what = "sha256sum: cannot be read: No such file or directory: what is for a program follows --"
    assert (ended.code, one_line(ended.err)) == (1, what)


def test_a_program_may_wait_for_what_is_typed() -> None:
    with subprocess.Popen(
        command("run", *SMALL, busybox(), "--", "sh", "-c", "read a; echo got $a; read b; exit $b"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got one\n"
        process.stdin.write(b"9\n")
        process.stdin.close()
        assert process.wait(60) == 9


def test_its_exit_code_is_the_commands_and_its_errors_go_to_standard_error() -> None:
    done = run(busybox(), "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_variables_are_set_besides_path_and_home() -> None:
    done = run("--env", "A=1=2", "--env", "HOME=/tmp", busybox(), "--", "env")
    assert sorted(done.stdout.split()) == [
        *(b"A=1=2", b"HOME=/tmp", b"PATH=/usr/local/bin:/usr/bin:/bin")
    ]


def test_what_it_has_written_can_be_saved(tmp_path: Path) -> None:
    script = "echo 1,2 > /out/a.csv; echo 3 > /out/b"
    saved = tmp_path / "saved"
    words = (busybox(), "--", "sh", "-c", script)
    assert run("--save", f"/out/a.csv={saved}", *words).returncode == 0
    assert saved.read_bytes() == b"1,2\n"
    done = run("--save", f"/out/c={saved}", *words)
    assert done.returncode == 1
    what = "--save /out/c: busybox has written no such file: /out/a.csv, /out/b"
    assert one_line(done.stderr.decode()) == what
    assert saved.read_bytes() == b"1,2\n"


def test_nothing_is_saved_over_what_was_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(b"1")
    words = (busybox(), "--", "sh", "-c", "echo 2 > /out/a")
    done = run("--file", f"/in/data={data}", "--save", f"/out/a={data}", *words)
    assert done.returncode == 1
    assert "would be overwritten" in one_line(done.stderr.decode())
    assert data.read_bytes() == b"1"


def test_a_directory_is_shown_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "numbers").write_bytes(b"3\n1\n2\n")
    words = (system_program("sort"), "--", "-o", "numbers", "numbers")
    done = run("--root", "/", "--save", f"{tmp_path}/numbers=sorted", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "numbers").read_bytes() == b"3\n1\n2\n"
    assert (tmp_path / "sorted").read_bytes() == b"1\n2\n3\n"


def test_a_frozen_clock_makes_runs_the_same_to_the_byte() -> None:
    code = (
        "import os, time; print(time.gmtime()[:6]); time.sleep(100); print(time.gmtime()[:6]); "
        "print(os.urandom(8).hex(), hash('text'), time.monotonic(), id(os), os.times())"
    )

    def printed(*options: str) -> list[str]:
        words = (system_program("python3"), "--", "-S", "-c", code)
        done = run("--root", "/", "--clock", "frozen", *options, *words)
        assert done.returncode == 0, done.stderr
        return str(done.stdout.decode()).splitlines()

    before = time.monotonic()
    first = printed("--seed", "5")
    assert first[:2] == ["(2001, 9, 9, 1, 46, 40)", "(2001, 9, 9, 1, 48, 20)"]
    assert first == printed("--seed", "5") != printed()
    assert time.monotonic() - before < 100


def test_calls_that_are_not_served_are_named() -> None:
    done = run("--json", busybox(), "--", "sh", "-c", "echo a | cat")
    (machine,) = json.loads(done.stdout)
    assert machine["not_served"] == {"clone": 1}
    assert done.stderr.splitlines() == [
        b"sh: can't fork: Function not implemented",
        b"pageferry: busybox: not served: clone (1)",
    ]


def test_every_call_is_shown_as_it_happens() -> None:
    done = run("--strace", busybox(), "--", "cat", "/in/none")
    lines = done.stderr.decode().splitlines()
    calls = [line for line in lines if line.startswith("busybox: ")]
    assert 'busybox: open("/in/none", 0, 0) = -1 ENOENT' in calls or (
        'busybox: openat(AT_FDCWD, "/in/none", 0, 0) = -1 ENOENT' in calls
    )
    assert calls[-1] == "busybox: exit_group(1) = ?"
    assert lines.index("cat: can't open '/in/none': No such file or directory") < len(lines) - 1


def test_a_crash_is_told_of_as_by_a_debugger() -> None:
    ended = pageferry("run", linux_program("crashes"), *SMALL, "--", "segfault")
    assert (ended.code, ended.out) == (70, "about to\n")
    first, *rest = ended.err.removeprefix("a last word\n").splitlines()
    assert re.fullmatch(
        r"pageferry: crashes: SIGSEGV: #PF page fault, write of 0x1234, "
        r"rip 0x[0-9a-f]+ \(store\+0x[0-9a-f]+ at crashes\.c:\d+\)",
        first,
    )
    assert rest[0] == "registers:"
    assert "rdi    0000000000001234" in "\n".join(rest)
    at = rest.index("last printed:")
    assert rest[at : at + 4] == ["last printed:", "  about to", "  a last word", "last calls:"]
    assert rest[-1].startswith("  write(2, ")


def test_json_tells_of_a_crash_as_well() -> None:
    ended = pageferry("run", linux_program("crashes"), *SMALL, "--json", "--", "abort")
    (machine,) = json.loads(ended.out)
    fault = machine["fault"]
    assert (ended.code, fault["kind"], fault["signal"]) == (70, "signal", "SIGABRT")
    assert fault["registers"].keys() >= {"rax", "rip", "rsp"}
    assert fault["calls"][-1].endswith(" = ?")
    assert fault["printed"] == ["about to", "a last word"]


def test_several_print_line_by_line_with_their_names(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(busybox())
    done = run(busybox(), busybox(), "--", "sh", "-c", "read x; printf 'one\\ntwo '; echo $x >&2")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert "busybox-2: one" in lines
    assert "busybox-2: two " in lines
    assert any(line.startswith("busybox: BusyBox v") for line in lines)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--", "x"), "takes no args"),
        (("--root", "/"), "takes no root"),
        (("--file", "/a=b"), "takes no files"),
        (("--env", "A=b"), "takes no env"),
        (("--disk", "1M"), "takes no disk"),
        (("--clock", "frozen"), "takes no clock"),
        (("--seed", "1"), "takes no seed"),
        (("--strace",), "takes no strace"),
        (("--save", "/out/a=b"), "has no files"),
    ],
)
def test_what_is_for_programs_is_refused_for_a_bare_guest(
    options: tuple[str, ...], what: str, guest_elf: Any
) -> None:
    before, dashes, after = options, (), ()
    if "--" in options:
        before, after = (), options
    ended = pageferry("run", *SMALL, *before, guest_elf("canary"), *dashes, *after)
    assert ended.code == 1
    assert what in one_line(ended.err)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--file", "data"), "'data' is not PATH=FILE"),
        (("--env", "=x"), "'=x' is not NAME=VALUE"),
        (("--clock", "broken"), "'broken' is not one of 'real', 'frozen'"),
        (("--seed", "x"), "'x' is not a valid integer"),
    ],
)
def test_an_option_that_cannot_be_meant_is_an_error(options: tuple[str, ...], what: str) -> None:
    ended = pageferry("run", *options, busybox())
    assert ended.code == 2
    assert what in ended.err


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("data=/etc/passwd", "'data' is no path to offer a file at"),
        ("/in/x=/none/at/all", "/none/at/all cannot be offered: No such file or directory"),
        ("/dev/null/x=/etc/passwd", "/dev/null/x cannot be offered: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_offered_is_an_error(file: str, what: str) -> None:
    ended = pageferry("run", *SMALL, "--file", file, busybox())
    assert ended.code == 1
    assert what in one_line(ended.err)


def test_memory_is_a_limit() -> None:
    code = "a = 'x'; a *= 1 << 20; b = [a + str(n) for n in range(200)]"
    python = system_program("python3")
    done = run("--root", "/", "--memory", "64M", python, "--", "-S", "-c", code)
    assert done.returncode == 1
    assert done.stderr.endswith(b"MemoryError\n")
    assert run("--root", "/", python, "--", "-S", "-c", code).returncode == 0

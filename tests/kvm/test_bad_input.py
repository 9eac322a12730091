"""Bad input and bad luck: the command ends with one line that says what to do, and leaves nothing.

Not shown here, as no kernel at hand has them: another API version, a missing capability.
"""

from __future__ import annotations

import functools
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, one_line, pageferry
from kvm.other_hosts import AS_I686, after, limited, root_only

Elf = Callable[[str], Path]
GIB = 1 << 30

pytestmark = pytest.mark.not_in_lanes("what the command says of its input and of the host's limits")


def refused(ended: Ended, code: int, *words: str) -> None:
    """Check that a command ended with a code and one line, which has these words."""
    line = one_line(ended.err)
    assert (ended.code, ended.out) == (code, ""), ended
    assert all(word in line for word in words), line


# ---- The file ----


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ("No such file", "give a file")),
        (lambda path: path.mkdir(), ("not a regular file",)),
        (lambda path: path.symlink_to("nowhere"), ("No such file",)),
        (lambda path: path.symlink_to(path), ("symbolic links",)),
        (lambda path: path.symlink_to("/dev/zero"), ("not a regular file",)),
        (lambda path: path.symlink_to("/proc/self/mem"), ("is empty", "at least one byte")),
        (lambda path: os.mkfifo(path), ("not a regular file", "give one that is")),
        (lambda path: path.touch(), ("is empty", "at least one byte")),
        (lambda path: path.write_bytes(bytes((2 << 20) + 1)), ("window", "--window")),
    ],
    ids=["missing", "folder", "dangling", "loop", "device", "proc", "fifo", "empty", "large"],
)
def test_a_file_that_cannot_be_sent(
    tmp_path: Path, make: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    file = tmp_path / "the file"
    make(file)
    refused(pageferry("demo", file, "--window", "2M"), 1, f"{file}: ", *words)


@root_only
def test_a_file_that_the_user_may_not_read(tmp_path: Path) -> None:
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to(tmp_path.parent.parent):
            path.chmod(0o755)
    file = tmp_path / "secret"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    refused(after("", "demo", file, nobody=True), 1, "Permission denied", "that you may read")


def test_a_file_larger_than_the_memory_there_is(tmp_path: Path) -> None:
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + GIB
    if size > 250 * GIB:
        pytest.skip("this host has more memory than a window may be large")
    file = tmp_path / "sparse"
    with file.open("wb") as sparse:
        sparse.truncate(size)
    refused(pageferry("demo", file, "--window", "256G"), 1, "memory available", "free some")


# ---- The guest ----


def test_a_guest_that_cannot_be_loaded(guest_elf: Elf, test_guest: Elf, tmp_path: Path) -> None:
    text = tmp_path / "text.elf"
    text.write_text("plain text\n")
    script = tmp_path / "script.elf"
    script.write_text("#!/bin/sh\n")
    cut = tmp_path / "cut.elf"
    cut.write_bytes(guest_elf("canary").read_bytes()[:3000])
    large = test_guest("large_bss")
    for path, words in (
        (text, ("not an ELF",)),
        (script, ("a script", "interpreter")),
        (cut, ("cut.elf",)),
        (tmp_path / "missing.elf", ("No such file",)),
        (tmp_path, ("not a regular file",)),
        (Path("/dev/zero"), ("not a regular file",)),
        (large, ("16 MiB",)),
    ):
        refused(pageferry("run", path, "--window", "2M"), 1, str(path), *words)
    roomy = pageferry("run", large, "--window", "2M", "--memory", "80M")
    assert roomy == Ended(0, "", "")


def test_a_guest_that_faults_before_it_sends(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("faults/undefined_instruction"), guest_elf("echo_server"))
    assert (ended.code, ended.out) == (70, "")
    assert one_line(ended.err).startswith("undefined_instruction: #UD invalid opcode, rip 0x")


# ---- The command line ----


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--window", "0", "positive"),
        ("--window", "abc", "is not a size"),
        ("--timeout", "0", "x>0"),
        ("--timeout", "nan", "not a number of seconds"),
        ("--workers", "0", "1<=x"),
        ("--mover", "bus", "memfd"),
        ("--ring", "1", "'0'"),
        ("--nonsense", "1", "No such option"),
    ],
)
def test_an_option_that_cannot_be_meant(option: str, value: str, words: str) -> None:
    ended = pageferry("demo", option, value)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith("Error: ")
    assert (option in ended.err, words in ended.err) == (True, True), ended.err


def test_a_window_over_the_limit_is_refused() -> None:
    refused(pageferry("demo", "--window", "257G"), 1, "window", "limit")


# ---- Output ----


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    for trace, words in (
        (Path("/dev/full"), "No space left"),
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "trace", "No such file"),
    ):
        refused(pageferry("demo", "--trace", trace), 1, f"trace to {trace}", words, "another file")


def test_the_trace_never_overwrites_what_is_to_be_read(guest_elf: Elf, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("my only copy")
    (tmp_path / "alias").symlink_to(file)
    for trace in (file, tmp_path / "alias"):
        refused(pageferry("demo", file, "--trace", trace), 1, "would be overwritten")
    refused(pageferry("run", file, "--trace", file), 1, "would be overwritten")
    assert file.read_text() == "my only copy"


@root_only
def test_a_trace_on_a_disk_that_fills_up(guest_elf: Elf, tmp_path: Path) -> None:
    # Many events into 16 KiB; the disk is full in the middle of the run.
    setup = f"mount -t tmpfs -o size=16k tmpfs {tmp_path}"
    guests = (guest_elf("echo_client"), guest_elf("echo_server"))
    ended = after(setup, "run", *guests, "--trace", tmp_path / "trace")
    assert ended.code == 1
    line = one_line(ended.err)
    assert ("No space left" in line, "another file" in line) == (True, True)


@pytest.mark.parametrize("arguments", [("demo",), ("demo", "--json"), ("run", "echo")])
def test_an_output_that_is_full_or_closed(guest_elf: Elf, arguments: tuple[str, ...]) -> None:
    if arguments[0] == "run":
        arguments = ("run", str(guest_elf("echo_client")), str(guest_elf("echo_server")))
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        refused(pageferry(*arguments, stdout=full), 1, "No space left", "free some space")
        ended = pageferry(*arguments, stdout=writer)  # as `| head -0` does
        assert (ended.code, ended.err) == (1, "")
    finally:
        os.close(full)
        os.close(writer)


# ---- The host ----


@root_only
@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ("mount -t tmpfs tmpfs /dev", ("does not exist", "driver is loaded", "--device")),
        ("mount --bind /dev/null /dev/kvm", ("is not KVM",)),
        ("mount --bind /etc/passwd /dev/kvm", ("is not KVM",)),
        ("mount -t tmpfs tmpfs /dev; mkdir /dev/kvm", ("cannot be opened", "Is a directory")),
        ("mount -t tmpfs tmpfs /dev; mknod /dev/kvm c 240 77", ("no driver", "c 10 232")),
    ],
    ids=["none", "null", "file", "folder", "driverless"],
)
def test_a_host_without_kvm(setup: str, words: tuple[str, ...]) -> None:
    refused(after(setup, "demo"), 69, "/dev/kvm", *words)


@root_only
def test_a_user_who_may_not_open_the_device() -> None:
    if Path("/dev/kvm").stat().st_mode & 0o006:
        pytest.skip("here everybody may")
    file = "/proc/self/exe"  # readable by its own process, whoever that is
    refused(after("", "demo", file, nobody=True), 69, "no permission", "usermod -aG kvm")


def test_a_host_that_is_not_x86_64() -> None:
    refused(pageferry("demo", code=AS_I686), 69, "x86-64", "i686")
    assert platform.machine() == "x86_64"


def test_a_ring_or_doorbell_that_does_not_work_here() -> None:
    # Which ones do is the host's matter: either the demo works or the line says what does.
    for options in (("--ring", "0"), ("--ring", "3"), ("--doorbell", "pio")):
        ended = pageferry("demo", "--json", *options)
        if ended.code:
            assert one_line(ended.err)
            assert (ended.code in (69, 70), ended.out) == (True, "")


# ---- What runs out ----

# From too few for Python's own needs, over too few for a monitor, to just enough.
FD_LIMITS = (4, 6, 7, 8, 9, 10, 12, 14, 16)
AS_LIMITS_MIB = (40, 60, 100, 200, 2000, 2200, 2400, 4000)


@pytest.mark.parametrize("limit", FD_LIMITS)
def test_no_descriptors_left(limit: int) -> None:
    ended = pageferry("demo", "--json", code=limited("RLIMIT_NOFILE", limit))
    if ended.code:
        refused(ended, 1, "oo many open files")
    assert ended.code == 0 or limit < 16


@pytest.mark.parametrize("mib", AS_LIMITS_MIB)
def test_no_address_space_left(mib: int) -> None:
    used = used_by_imports()
    ended = pageferry("demo", "--json", code=limited("RLIMIT_AS", used + (mib << 20)))
    if ended.code:
        line = one_line(ended.err)
        assert (ended.code, ended.out) == (1, "")
        assert any(w in line for w in ("memory", "address space", "start a thread")), line
    assert ended.code == 0 or mib < 4000


@functools.cache
def used_by_imports() -> int:
    """Return the address space, in bytes, that the command takes before it does anything."""
    code = "import vmm.command.cli; print(open('/proc/self/statm').read().split()[0])"
    return int(pageferry(code=code).out) * resource.getpagesize()

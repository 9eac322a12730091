"""A program's first stack: read back as a C library does, and compared with the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from unit.elf_maker import Elf
from unit.stopped_process import stopped

from vmm.errors import ConfigError
from vmm.guest.elf import Source
from vmm.linux.loader import read_program
from vmm.linux.start import Auxiliary, Start, start_stack

TOP, SIZE = 0x7FFF_F000, 8 << 20
PROGRAM = read_program(Source.of(Elf(b"").pack()), "x")
RANDOM = bytes(range(16))
LIMIT = 128 << 10


class Found(NamedTuple):
    argv: list[bytes]
    envp: list[bytes]
    auxiliary: dict[int, int]


def read_back(read: Callable[[int, int], bytes], rsp: int) -> Found:
    """Read a stack as the AMD64 supplement has it; `read` gives a number of bytes at an address."""

    def words() -> Iterator[int]:
        at = rsp
        while True:
            yield int.from_bytes(read(at, 8), "little")
            at += 8

    def text(at: int) -> bytes:
        parts = bytearray()
        while (byte := read(at + len(parts), 1)) != b"\0":
            parts += byte
        return bytes(parts)

    found = words()
    argv = [text(next(found)) for _ in range(next(found))]
    assert next(found) == 0
    envp = [text(at) for at in iter(found.__next__, 0)]
    auxiliary = {}
    for kind in found:
        auxiliary[kind] = next(found)
        if kind == 0:
            return Found(argv, envp, auxiliary)
    raise AssertionError


def made(
    argv: Sequence[bytes], envp: Sequence[bytes] = (), path: bytes = b"/bin/x", size: int = SIZE
) -> Start:
    return start_stack(TOP, size, PROGRAM, argv, envp, random=RANDOM, path=path, hwcap=0x78BFBFF)


def reader(start: Start) -> Callable[[int, int], bytes]:
    def read(at: int, length: int) -> bytes:
        assert start.rsp <= at <= at + length <= TOP
        return start.data[at - start.rsp : at - start.rsp + length]

    return read


STRING = st.binary(max_size=200).map(lambda data: data.replace(b"\0", b"\1"))


@settings(max_examples=300, deadline=None)
@given(argv=st.lists(STRING, max_size=20), envp=st.lists(STRING, max_size=20), path=STRING)
def test_what_is_put_there_is_what_is_found(
    argv: list[bytes], envp: list[bytes], path: bytes
) -> None:
    start = made(argv, envp, path)
    assert start.rsp % 16 == 0
    assert start.rsp + len(start.data) == TOP
    read = reader(start)
    found = read_back(read, start.rsp)
    assert (found.argv, found.envp) == (argv, envp)
    auxiliary = found.auxiliary
    assert read(auxiliary[Auxiliary.RANDOM], 16) == RANDOM
    assert read(auxiliary[Auxiliary.EXECFN], len(path) + 1) == path + b"\0"
    assert read(auxiliary[Auxiliary.PLATFORM], 7) == b"x86_64\0"
    assert start.data.endswith(bytes(8))


def test_it_is_what_linux_puts_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(Elf(b"").pack())
    path.chmod(0o755)
    argv, envp = ["x", "", "third argument", "ä"], ["A=1", "EMPTY=", "B=2 3"]
    with stopped(path, argv, envp) as process:
        theirs = read_back(lambda at, length: process.read(at, at + length), process.rsp)
        name = process.read(theirs.auxiliary[31], theirs.auxiliary[31] + len(str(path)))
        assert name == str(path).encode()
    start = made([a.encode() for a in argv], [e.encode() for e in envp], str(path).encode())
    ours = read_back(reader(start), start.rsp)
    assert (ours.argv, ours.envp) == (theirs.argv, theirs.envp)
    # Of what the kernel tells we leave out its own code (33), and what belongs to no machine of
    # ours: the size of a signal's frame (51), and of a restartable sequence (27, 28).
    assert theirs.auxiliary.keys() - ours.auxiliary.keys() <= {33, 51, 27, 28}
    assert ours.auxiliary.keys() <= theirs.auxiliary.keys() | {26}
    pointers = {Auxiliary.RANDOM, Auxiliary.EXECFN, Auxiliary.PLATFORM}
    its_own = {Auxiliary.HWCAP, Auxiliary.HWCAP2}
    users = {Auxiliary.UID, Auxiliary.EUID, Auxiliary.GID, Auxiliary.EGID}
    for kind in ours.auxiliary.keys() - pointers - its_own - users:
        assert ours.auxiliary[kind] == theirs.auxiliary[kind], Auxiliary(kind)
    assert all(ours.auxiliary[kind] == 0 for kind in users)
    assert ours.auxiliary[Auxiliary.HWCAP] == 0x78BFBFF


def test_a_dynamic_programs_interpreter_finds_its_own_base_and_the_programs_entry() -> None:
    interpreter = read_program(Source.of(Elf(b"").pack()), "ld.so")
    start = start_stack(
        TOP,
        SIZE,
        PROGRAM,
        [b"x"],
        [],
        random=RANDOM,
        path=b"x",
        hwcap=1,
        hwcap2=2,
        interpreter=interpreter,
    )
    found = read_back(reader(start), start.rsp).auxiliary
    assert found[Auxiliary.BASE] == interpreter.base
    assert found[Auxiliary.ENTRY] == PROGRAM.entry
    assert (found[Auxiliary.HWCAP], found[Auxiliary.HWCAP2]) == (1, 2)


# ---- Limits ----


def test_the_largest_argument() -> None:
    most = b"a" * (LIMIT - 1)
    start = made([most], [most])
    assert read_back(reader(start), start.rsp).argv == [most]
    for argv, envp, what in (([b"x", most + b"a"], [], "argument"), ([], [most + b"a"], "environ")):
        with pytest.raises(ConfigError, match=rf"{what}.*is 131072 bytes: one may be 131071"):
            made(argv, envp)


def test_arguments_may_take_a_quarter_of_the_stack() -> None:
    size = 64 << 10
    room = size // 4 - len(b"/bin/x") - 9
    count, rest = divmod(room, 109)  # of 100 bytes each, with zero and pointer
    start = made([b"a" * 100] * count + [b"b" * (rest - 9)], size=size)
    assert len(start.data) < size // 4 + 512
    with pytest.raises(ConfigError, match="may take a quarter of the stack, 16 KiB: give fewer"):
        made([b"a" * 100] * count + [b"b" * (rest - 8)], size=size)


@pytest.mark.parametrize(
    ("argv", "envp", "path", "what"),
    [
        ([b"x", b"a\0b"], [], b"x", "argument"),
        ([], [b"A=\0"], b"x", "environment variable"),
        ([], [], b"\0", "path"),
    ],
)
def test_no_string_has_a_zero_in_it(
    argv: list[bytes], envp: list[bytes], path: bytes, what: str
) -> None:
    with pytest.raises(ConfigError, match=f"{what} .* has a zero byte in it"):
        made(argv, envp, path)

"""Linux's executables: what a file is, and what its machine's memory is to be before the start.

Compared with this kernel's own loader, which is stopped before the program's first instruction.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from unit.compilers import no_cc
from unit.elf_maker import DATA, ENTRY, PT_LOAD, READ, Elf, note
from unit.image_scene import MIB, costs
from unit.stopped_process import stopped

from vmm.errors import GuestImageError
from vmm.guest import abi
from vmm.guest.compiler import Compiler
from vmm.guest.elf import Source
from vmm.guest.image import Image, Room
from vmm.linux import kinds, loader
from vmm.linux.kinds import Kind
from vmm.linux.loader import Program, Segment

HELLO = '#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n'
LINUX_NOTE = note(b"pageferry", abi.NOTE_LINUX, struct.pack("<2I", abi.ABI_MAJOR, abi.ABI_MINOR))
PAGE = 4096
BUSYBOX = shutil.which("busybox")

# The first time, ziglang builds a C library.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a hello-world with options of cc's, once each."""
    if no_cc:
        pytest.skip("no cc")
    work = tmp_path_factory.mktemp("programs")
    (work / "hello.c").write_text(HELLO)

    def build(*flags: str) -> Path:
        output = work / ("hello" + "".join(flags).replace("/", "_"))
        if not output.exists():
            subprocess.run(["cc", *flags, "hello.c", "-o", output], cwd=work, check=True)
        return output

    return build


@pytest.fixture(scope="module")
def static(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program of either compiler's, and so of either C library's."""
    work = tmp_path_factory.mktemp("static")
    (work / "hello.c").write_text(HELLO)
    command = [*compiler.for_linux, "-static", "hello.c", "-o", "hello"]
    subprocess.run(command, cwd=work, check=True)
    return work / "hello"


def program(path: str | Path, **given: bool) -> Program:
    loaded = loader.load(path, **given)
    assert isinstance(loaded, Program)
    return loaded


def parsed(elf: bytes, **given: bool) -> Program:
    return loader.read_program(Source.of(elf), "x", **given)


def refused(data: bytes) -> str:
    with pytest.raises(GuestImageError) as caught:
        parsed(data)
    assert str(caught.value).startswith("x: ")
    return str(caught.value).removeprefix("x: ")


def page_rights(segments: tuple[Segment, ...]) -> dict[int, str]:
    return {
        page: "".join(c if s.rights & bit else "-" for c, bit in zip("rwx", (1, 2, 4), strict=True))
        for s in segments
        for page in range(s.start, s.end, PAGE)
    }


def check_against_the_kernel(path: Path) -> None:
    """Compare addresses, rights and bytes of every page, and what the heap begins at."""
    loaded = program(path)
    with stopped(path) as process:
        bias = process.auxiliary[9] - loaded.entry
        assert bias == 0 or loaded.base
        rights = {
            page - bias: kept
            for start, end, kept, name in process.maps
            if not name.startswith("[")
            for page in range(start, end, PAGE)
        }
        assert page_rights(loaded.segments) == rights
        for segment in loaded.segments:
            seen = process.read(segment.start + bias, segment.end + bias)
            assert seen == segment.data.ljust(segment.end - segment.start, b"\0")
        assert process.auxiliary[3] == loaded.headers + bias
        assert process.auxiliary[5] == loaded.header_count
        if not loaded.base:
            assert process.heap == loaded.end


# ---- As the kernel loads them ----


def test_a_static_program_is_in_memory_as_linux_has_it(static: Path) -> None:
    check_against_the_kernel(static)
    loaded = program(static)
    assert (loaded.base, loaded.interpreter, loaded.peer) == (0, None, False)
    assert loaded.place(loaded.entry).symbol == "_start"


def test_a_program_that_may_lie_anywhere_lies_at_its_base(made: Callable[..., Path]) -> None:
    path = made("-static-pie")
    check_against_the_kernel(path)
    loaded = program(path)
    assert loaded.base == loaded.segments[0].start == loader.PIE_BASE
    assert loaded.place(loaded.entry).symbol == "_start"


@pytest.mark.parametrize(
    "flags",
    [
        ("-static", "-s"),
        ("-static", "-Wl,-z,noseparate-code"),
        ("-static", "-Wl,-z,max-page-size=2097152"),
        ("-static", "-Wl,-Ttext-segment=0x3000000"),
    ],
)
def test_programs_that_are_linked_in_other_ways(
    made: Callable[..., Path], flags: tuple[str, ...]
) -> None:
    check_against_the_kernel(made(*flags))


def test_debians_busybox_is_in_memory_as_linux_has_it() -> None:
    if BUSYBOX is None:
        pytest.skip("no busybox")
    check_against_the_kernel(Path(BUSYBOX))


def test_an_executable_stack_is_told_of(made: Callable[..., Path]) -> None:
    assert program(made("-static", "-Wl,-z,execstack")).stack_code
    assert not program(made("-static")).stack_code


def test_segments_that_share_a_page_share_it_as_linux_maps_them(tmp_path: Path) -> None:
    # The second begins in the middle of a page that the first ends in: the page is the second's.
    elf = Elf(notes=b"", loads=[(PT_LOAD, DATA, 0x1800, ENTRY + 0x1800, 0x200, 0x3000)])
    elf.loads.append((PT_LOAD, READ, 0x1400, ENTRY + 0x8400, 0x10, 0x10))
    data = bytearray(elf.pack())
    data[0x1000:0x3000] = bytes(range(1, 256)) * 33
    struct.pack_into("<2Q", data, 64 + 32, 0x1700, 0x1700)  # the first, up into it
    path = tmp_path / "shared"
    path.write_bytes(data)
    path.chmod(0o755)
    check_against_the_kernel(path)
    first, second, zeros, third = program(path).segments
    assert (first.end, second.start, second.rights) == (ENTRY + 0x1000, ENTRY + 0x1000, 3)
    assert second.data == bytes(data[0x1000:0x1A00])
    assert (zeros.data, zeros.end) == (b"", ENTRY + 0x5000)
    assert third.data == bytes(data[0x1000:0x2000])


# ---- What a file is ----


def test_what_a_file_is_it_says_itself(
    made: Callable[..., Path], static: Path, guest_elf: Callable[[str], Path]
) -> None:
    def kind(data: bytes) -> Kind:
        return kinds.detect(Source.of(data), "x")

    assert kind(static.read_bytes()) is Kind.STATIC
    assert kind(made("-static-pie").read_bytes()) is Kind.STATIC
    assert kind(made().read_bytes()) is Kind.DYNAMIC
    assert kind(made("-no-pie").read_bytes()) is Kind.DYNAMIC
    assert kind(guest_elf("canary").read_bytes()) is Kind.GUEST
    assert kind(Elf(LINUX_NOTE).pack()) is Kind.PEER
    assert kind(Elf(b"").pack()) is Kind.STATIC
    assert parsed(Elf(LINUX_NOTE).pack()).peer


def test_a_guest_is_loaded_as_ever(guest_elf: Callable[[str], Path]) -> None:
    path = guest_elf("canary")
    loaded = loader.load(path)
    assert isinstance(loaded, Image)
    assert loader.load(path) is loaded
    with pytest.raises(GuestImageError, match="a guest, and no program for Linux"):
        parsed(path.read_bytes())
    with pytest.raises(GuestImageError, match="4096 B of private memory"):
        loader.load(guest_elf("demo_a"), Room(4096, 4096))


def test_a_dynamic_program_needs_its_libraries(made: Callable[..., Path]) -> None:
    path = made()
    for _ in range(2):  # and is refused all the same once it is kept
        with pytest.raises(GuestImageError, match=r"link it with cc -static, or give .*root="):
            loader.load(path)
        assert program(path, rooted=True).interpreter == b"/lib64/ld-linux-x86-64.so.2"


def test_its_interpreter_lies_beyond_it(made: Callable[..., Path]) -> None:
    path = Path("/lib64/ld-linux-x86-64.so.2")
    interpreter = loader.read_interpreter(Source.of(path.read_bytes()), str(path))
    assert interpreter.base == interpreter.segments[0].start == loader.INTERPRETER_BASE
    with stopped(made()) as process:
        there = process.auxiliary[7]
        for segment in interpreter.segments:
            start, size = segment.start - interpreter.base + there, segment.end - segment.start
            assert process.read(start, start + size) == segment.data.ljust(size, b"\0")
    with pytest.raises(GuestImageError, match="an interpreter that wants one itself"):
        loader.read_interpreter(Source.of(made().read_bytes()), "x")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-c",), "an object file, not linked yet: link it with cc -static"),
        (("-shared", "-fPIC"), "a shared library: give an executable"),
        (("-shared", "-fPIC", "-nostdlib"), "a shared library: give an executable"),
        (
            ("-static", "-Wl,-Ttext-segment=0x10000"),
            "segment at 0x10000 is linked too low: programs lie from 0x200000 on: link it with "
            "-Wl,-Ttext-segment=0x400000",
        ),
        (("-static", "-Wl,-Ttext-segment=0x40000000"), "segment at 0x40000000 ("),
    ],
)
def test_what_no_machine_can_run(
    made: Callable[..., Path], flags: tuple[str, ...], says: str
) -> None:
    assert refused(made(*flags).read_bytes()).startswith(says)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an ELF file: give a guest, or a static Linux program"),
        (b"#!/bin/sh\necho\n", "a script: machines run executables: give its interpreter's"),
        (b"\x7fELF", "truncated or malformed ELF"),
    ],
)
def test_what_is_no_executable(data: bytes, says: str) -> None:
    assert refused(data).startswith(says)


def changed(offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(Elf(b"").pack())
    struct.pack_into("<" + layout, data, offset, *values)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (changed(16, "H", 4), "a core dump: give the executable that it is of"),
        (changed(16, "H", 77), "not an executable (type 77): give one"),
        (changed(18, "H", 183), "built for AARCH64: guests are x86-64"),
        (changed(4, "B", 1), "32-bit ELF: guests are 64-bit, compile with -m64"),
        (changed(56, "H", 65), "65 program headers are too many: link it again, with cc -static"),
        (changed(56, "H", 0), "nothing to load (no PT_LOAD segment)"),
        (changed(24, "Q", 1), "the entry point 0x1 is not in executable code"),
        (changed(64 + 16, "Q", ENTRY + 1), "segment at 0x200001 is not aligned as it is in the"),
        (changed(64 + 40, "Q", 1 << 40), "segment at 0x200000 (1099511627776 bytes) is out of"),
        (changed(64 + 40, "Q", (1 << 64) - 1), "segment at 0x200000 ("),
        (changed(64 + 8, "Q", 1 << 63), "segment 0 ends at byte"),
    ],
)
def test_headers_that_nobody_means(data: bytes, says: str) -> None:
    assert refused(data).startswith(says)


@pytest.mark.parametrize(
    ("major", "minor"), [(abi.ABI_MAJOR + 1, 0), (abi.ABI_MAJOR, abi.ABI_MINOR + 1)]
)
def test_a_peer_of_another_abi_is_refused(major: int, minor: int) -> None:
    data = Elf(note(b"pageferry", abi.NOTE_LINUX, struct.pack("<2I", major, minor))).pack()
    assert refused(data).startswith(f"built for ABI {major}.{minor}, this monitor has")


PT_INTERP, PT_DYNAMIC = 3, 2


@pytest.mark.parametrize("path", [b"", b"\0", b"/ld.so", b"/" * 4096 + b"\0"])
def test_an_interpreter_with_no_name(path: bytes) -> None:
    data = Elf(path, [(PT_INTERP, READ, 0x2000, 0, len(path), len(path))]).pack()
    with pytest.raises(GuestImageError, match="malformed"):
        parsed(data, rooted=True)


@pytest.mark.parametrize("base", [loader.INTERPRETER_BASE, abi.DOORBELL_GPA])
def test_the_last_page_that_a_program_may_have(base: int) -> None:
    loads = [(PT_LOAD, DATA, 0, base - PAGE, 0, PAGE)]
    wants = b"/ld.so\0"
    if base == loader.INTERPRETER_BASE:
        loads.append((PT_INTERP, READ, 0x2000, 0, len(wants), len(wants)))
    assert parsed(Elf(wants, loads).pack(), rooted=True).end == base
    loads[0] = (PT_LOAD, DATA, 0, base - PAGE, 0, PAGE + 1)
    with pytest.raises(GuestImageError, match=f"lie between 0x200000 and {base:#x}"):
        parsed(Elf(wants, loads).pack(), rooted=True)


# ---- What it costs ----


def test_a_program_is_refused_for_its_size_before_any_of_it_is_read(tmp_path: Path) -> None:
    loads = [(PT_LOAD, DATA, 0x10000, 0x400000 + n * MIB, MIB, MIB) for n in range(62)]
    path = tmp_path / "holes"
    path.write_bytes(Elf(b"", loads).pack())
    with path.open("ab") as file:
        file.truncate(100 * MIB)
    with costs(1), pytest.raises(GuestImageError, match=r"takes 62 MiB, more than the 61 MiB"):
        loader.load(path, memory=61 * MIB)
    assert program(path).size == 62 * MIB + PAGE
    with pytest.raises(GuestImageError, match="more than the 62 MiB"):  # it is kept
        loader.load(path, memory=62 * MIB)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_a_program_or_an_error(data: st.DataObject) -> None:
    loads = [(PT_LOAD, DATA, 0x1800, ENTRY + 0x1800, 0x200, 0x3000)]
    flipped = bytearray(Elf(LINUX_NOTE, [*loads, (PT_DYNAMIC, READ, 0x1000, 0, 64, 64)]).pack())
    for _ in range(data.draw(st.integers(1, 6))):
        where = st.integers(0, 64 + 56 * 4) | st.integers(0, len(flipped) - 1)
        flipped[data.draw(where)] = data.draw(st.integers(0, 255))
    try:
        loaded = parsed(bytes(flipped), rooted=data.draw(st.booleans()))
    except GuestImageError as error:
        assert str(error).startswith("x: ")
        return
    for low, high in zip(loaded.segments, loaded.segments[1:], strict=False):
        assert low.end <= high.start
    for segment in loaded.segments:
        assert segment.start % PAGE == segment.end % PAGE == 0
        assert len(segment.data) <= segment.end - segment.start
        assert abi.IMAGE_GPA <= segment.start < segment.end <= loaded.end <= abi.DOORBELL_GPA

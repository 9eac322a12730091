"""Guest images: a real one, changed in one thing at a time, and what is said about it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vmm.errors import GuestImageError, Place
from vmm.guest import abi
from vmm.guest.image import load_image, parse_image

# Offsets in the ELF header and in a program header (ELF-64 object file format, 1.5).
CLASS, TYPE, MACHINE, ENTRY, PHNUM = 4, 16, 18, 24, 56
P_TYPE, P_FLAGS, P_OFFSET, P_VADDR, P_FILESZ, P_MEMSZ, P_ALIGN = 0, 4, 8, 16, 32, 40, 48
PT_LOAD, PT_NOTE, PT_TLS = 1, 4, 7
NAME = "dir/guest.elf"


class Elf(bytearray):
    """An ELF file's bytes, and where to change them."""

    def put(self, offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, self, offset, *values)

    def get(self, offset: int, layout: str) -> int:
        return int(struct.unpack_from("<" + layout, self, offset)[0])

    def headers(self, kind: int) -> Iterator[int]:
        """Where the program headers of one type are."""
        start, size, count = self.get(32, "Q"), self.get(54, "H"), self.get(PHNUM, "H")
        for offset in range(start, start + size * count, size):
            if self.get(offset + P_TYPE, "I") == kind:
                yield offset

    def load(self, index: int) -> int:
        return list(self.headers(PT_LOAD))[index]

    def note(self) -> int:
        """Where the ABI note is: name and descriptor sizes, type, name, descriptor."""
        return self.get(next(self.headers(PT_NOTE)) + P_OFFSET, "Q")


@pytest.fixture(scope="module")
def canary(guest_elf: Callable[[str], Path]) -> bytes:
    return guest_elf("canary").read_bytes()


@pytest.fixture
def elf(canary: bytes) -> Elf:
    return Elf(canary)


def complaint(data: bytes | bytearray) -> str:
    """What is said about a file that is refused: one line that begins with its name."""
    with pytest.raises(GuestImageError) as caught:
        parse_image(bytes(data), NAME)
    text = str(caught.value)
    assert text.startswith(f"{NAME}: ")
    assert "\n" not in text
    return text.removeprefix(f"{NAME}: ")


def test_a_guest_is_its_segments_its_entry_and_its_end(elf: Elf) -> None:
    image = parse_image(bytes(elf), NAME)
    assert (image.name, image.entry) == (NAME, elf.get(ENTRY, "Q"))
    for segment, header in zip(image.segments, elf.headers(PT_LOAD), strict=True):
        offset, size = elf.get(header + P_OFFSET, "Q"), elf.get(header + P_FILESZ, "Q")
        assert segment.data == elf[offset : offset + size]
        assert segment.gpa == elf.get(header + P_VADDR, "Q")
        assert segment.size == elf.get(header + P_MEMSZ, "Q") >= len(segment.data)
        flags = elf.get(header + P_FLAGS, "I")
        assert (segment.write, segment.execute) == (bool(flags & 2), bool(flags & 1))
        assert not (segment.write and segment.execute)
        assert segment.first_page <= segment.gpa < segment.first_page + 4096
        assert image.end >= segment.end_page >= segment.gpa + segment.size
    assert image.end % 4096 == 0


# ---- One thing wrong ----


@pytest.mark.parametrize("data", [b"", b"\x7f", b"MZ" + bytes(100)])
def test_a_file_that_is_no_elf(data: bytes) -> None:
    assert complaint(data) == "not an ELF file: give a guest, or a static Linux program"


def test_a_script() -> None:
    wanted = "a script: machines run executables: give its interpreter's, "
    assert complaint(b"#!/bin/sh\n").startswith(wanted)


@pytest.mark.parametrize("name", ["x.c", "dir/start.S"])
def test_a_source(name: str) -> None:
    with pytest.raises(GuestImageError) as caught:
        parse_image(b"int main(void) {}", name)
    wanted = f"{name}: a source, not an ELF file: build it first (pageferry build {name})"
    assert str(caught.value) == wanted


def test_another_machine(elf: Elf) -> None:
    elf.put(MACHINE, "H", 183)
    assert complaint(elf) == "built for AARCH64: guests are x86-64"


def test_32_bits(elf: Elf) -> None:
    small = Elf(b"\x7fELF\1\1\1".ljust(16, b"\0"))
    small += struct.pack("<2H5I6H", 2, 3, 1, 0x200000, 0, 0, 0, 52, 0, 0, 0, 0, 0)
    assert complaint(small) == "32-bit ELF: guests are 64-bit, compile with -m64"
    elf[CLASS] = 1  # what follows is then read as another layout
    complaint(elf)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            3,
            "not a static executable (ET_DYN: dynamic, or position-independent): "
            "build its sources for pageferry (pageferry build FILE.c)",
        ),
        (1, f"an object file (ET_REL), not an executable: link it (pageferry build {NAME})"),
        (4, "not a static executable (ET_CORE): give a guest built for pageferry"),
    ],
)
def test_position_independent_or_no_executable_at_all(elf: Elf, kind: int, words: str) -> None:
    elf.put(TYPE, "H", kind)
    assert complaint(elf) == words


def test_nothing_to_load(elf: Elf) -> None:
    for header in list(elf.headers(PT_LOAD)):
        elf.put(header + P_TYPE, "I", 0)
    assert complaint(elf) == "nothing to load (no PT_LOAD segment): link with guest.ld"


def test_a_count_of_program_headers_that_nobody_means(elf: Elf) -> None:
    elf.put(PHNUM, "H", 65)
    assert complaint(elf) == "65 program headers are too many: link with guest.ld"


def test_an_entry_point_outside_of_code(elf: Elf) -> None:
    segments = parse_image(bytes(elf), NAME).segments
    code, constants = (next(s for s in segments if s.execute is wanted) for wanted in (True, False))
    for entry in (0, code.gpa - 1, code.gpa + code.size, constants.gpa, (1 << 64) - 1):
        elf.put(ENTRY, "Q", entry)
        assert complaint(elf) == (
            f"the entry point {entry:#x} is not in executable code: link with guest.ld"
        )
    for entry in (code.gpa, code.gpa + code.size - 1):
        elf.put(ENTRY, "Q", entry)
        assert parse_image(bytes(elf), NAME).entry == entry


def test_overlapping_segments(elf: Elf) -> None:
    first, second = elf.load(0), elf.load(1)
    elf.put(second + P_VADDR, "Q", elf.get(first + P_VADDR, "Q"))
    assert complaint(elf) == "segments at 0x200000 and 0x200000 overlap: link with guest.ld"


def test_segments_that_share_a_page(elf: Elf) -> None:
    first, second = elf.load(0), elf.load(1)
    start = elf.get(first + P_VADDR, "Q") + elf.get(first + P_MEMSZ, "Q")
    elf.put(second + P_VADDR, "Q", start)
    assert complaint(elf) == f"segments at 0x200000 and {start:#x} share a page: align them to 4096"


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        pytest.param(abi.IMAGE_GPA - 4096, 4096, id="below"),
        pytest.param(0, 4096, id="page zero"),
        pytest.param(abi.DOORBELL_GPA - 4096, 4097, id="into the doorbell page"),
        pytest.param(abi.DOORBELL_GPA, 1, id="the doorbell page"),
        pytest.param(abi.WINDOW_GPA, 4096, id="the window"),
        pytest.param((1 << 64) - 4096, 4096, id="up to 2^64"),
        pytest.param(abi.IMAGE_GPA + 0x100000, (1 << 64) - 0x300000, id="around 2^64"),
    ],
)
def test_a_segment_out_of_range(elf: Elf, gpa: int, size: int) -> None:
    last = elf.load(-1)
    elf.put(last + P_VADDR, "Q", gpa)
    elf.put(last + P_FILESZ, "2Q", 0, size)
    wanted = f"segment at {gpa:#x} ({size} bytes) is out of range: images lie between"
    assert complaint(elf).startswith(wanted)


def test_a_segment_may_reach_up_to_the_doorbell_page(elf: Elf) -> None:
    last = elf.load(-1)
    elf.put(last + P_VADDR, "Q", abi.DOORBELL_GPA - 4096)
    elf.put(last + P_FILESZ, "2Q", 0, 4096)
    assert parse_image(bytes(elf), NAME).end == abi.DOORBELL_GPA


def test_a_segment_with_more_bytes_in_the_file_than_in_memory(elf: Elf) -> None:
    elf.put(elf.load(1) + P_MEMSZ, "Q", elf.get(elf.load(1) + P_FILESZ, "Q") - 1)
    with pytest.raises(GuestImageError, match=r"guest.elf: segment 1 has more bytes in the file"):
        parse_image(bytes(elf), NAME)


@pytest.mark.parametrize("size", [1 << 20, (1 << 64) - 1])
def test_a_segment_beyond_the_end_of_the_file(elf: Elf, size: int) -> None:
    elf.put(elf.load(1) + P_FILESZ, "2Q", size, size)
    with pytest.raises(GuestImageError, match=r"segment 1 ends at byte \d+ of \d+: .* truncated"):
        parse_image(bytes(elf), NAME)


def test_a_file_cut_off_anywhere_is_refused_or_loses_nothing_that_is_loaded(elf: Elf) -> None:
    segments = parse_image(bytes(elf), NAME).segments
    loads = list(elf.headers(PT_LOAD))
    needed = max(elf.get(h + P_OFFSET, "Q") + elf.get(h + P_FILESZ, "Q") for h in loads)
    for size in range(0, len(elf), 64):
        try:
            image = parse_image(bytes(elf[:size]), NAME)
        except GuestImageError as error:
            wanted = "truncated" if size else "not an ELF file"
            assert wanted in str(error)
        else:
            assert size >= needed
            assert image.segments == segments


# ---- Thread-local variables ----


def test_the_fs_base_is_after_the_thread_local_variables(elf: Elf) -> None:
    image = parse_image(bytes(elf), NAME)
    header = next(elf.headers(PT_TLS))
    after = elf.get(header + P_VADDR, "Q") + elf.get(header + P_MEMSZ, "Q")
    assert after <= image.thread < after + elf.get(header + P_ALIGN, "Q")
    (data,) = (s for s in image.segments if s.write)
    assert data.word_at(image.thread) == image.thread
    elf.put(header, "I", 0)  # a guest may have none, as those built for ABI 1.1 have
    assert parse_image(bytes(elf), NAME).thread == 0


@pytest.mark.parametrize(
    ("field", "value"), [(P_MEMSZ, 9), (P_MEMSZ, 1 << 40), (P_ALIGN, 1 << 63), (P_ALIGN, 8192)]
)
def test_thread_local_variables_that_nothing_follows(elf: Elf, field: int, value: int) -> None:
    elf.put(next(elf.headers(PT_TLS)) + field, "Q", value)
    if field == P_MEMSZ:
        elf.put(next(elf.headers(PT_TLS)) + P_ALIGN, "Q", 0)
    assert complaint(elf).startswith("thread-local variables, and nothing after them for the FS")


# ---- The ABI note ----


def test_a_program_without_the_note(elf: Elf) -> None:
    note, header = elf.note(), next(elf.headers(PT_NOTE))
    for offset, value in ((note + 8, abi.NOTE_ABI + 1), (note + 12, 0x41414141), (header, 0)):
        changed = Elf(elf)
        changed.put(offset, "I", value)
        assert complaint(changed).startswith("no pageferry ABI note: link the guest library")


@pytest.mark.parametrize("size", [0, 4, 12])
def test_a_note_of_the_wrong_size(elf: Elf, size: int) -> None:
    elf.put(elf.note() + 4, "I", size)
    assert complaint(elf) == f"the pageferry ABI note is {size} bytes, not 8: rebuild it"


@pytest.mark.parametrize(
    ("major", "minor"),
    [
        (abi.ABI_MAJOR + 1, 0),
        (abi.ABI_MAJOR - 1, 0),
        (abi.ABI_MAJOR, abi.ABI_MINOR + 1),
        (abi.ABI_MAJOR, 0xFFFFFFFF),
        (0xFFFFFFFF, 0),
    ],
)
def test_another_major_or_a_newer_minor(elf: Elf, major: int, minor: int) -> None:
    elf.put(elf.note() + 24, "2I", major, minor)
    assert complaint(elf) == (
        f"built for ABI {major}.{minor}, this monitor has {abi.ABI_MAJOR}.{abi.ABI_MINOR}: "
        "rebuild the guest against its pageferry.h"
    )


# ---- Files ----


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read_again(
    elf: Elf, tmp_path: Path
) -> None:
    path, other = tmp_path / "guest.elf", tmp_path / "other.elf"
    path.write_bytes(elf)
    entry = load_image(path).entry
    assert load_image(str(path)).name == str(path)
    elf.put(ENTRY, "Q", entry + 4)
    other.write_bytes(elf)
    os.utime(path, (1, 1))
    os.utime(other, (1, 1))
    load_image(path)
    other.replace(path)
    assert load_image(path).entry == entry + 4


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda path: None, "cannot be read: No such file", id="missing"),
        pytest.param(Path.mkdir, "not a regular file", id="directory"),
        pytest.param(os.mkfifo, "not a regular file", id="fifo"),
        pytest.param(lambda p: p.symlink_to("/proc/self/mem"), "cannot be read", id="unreadable"),
        pytest.param(lambda p: p.symlink_to(p), "cannot be read: Too many levels", id="loop"),
        pytest.param(Path.touch, "not an ELF file", id="empty"),
        pytest.param(_huge, "1099511627776 bytes is too large", id="huge"),
    ],
)
def test_a_path_that_is_no_guest(make: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    path = tmp_path / "guest"
    make(path)
    with pytest.raises(GuestImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: {why}")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_an_image_or_an_error(canary: bytes, data: st.DataObject) -> None:
    flipped = bytearray(canary)
    tables = st.integers(0, 0x180) | st.integers(0x1000, 0x1020)
    sections = st.integers(len(canary) - 17 * 64, len(canary) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        anywhere = tables | sections | st.integers(0, len(canary) - 1)
        flipped[data.draw(anywhere)] = data.draw(st.integers(0, 255))
    try:
        image = parse_image(bytes(flipped), NAME)
    except GuestImageError as error:
        assert str(error).startswith(NAME)
        return
    assert all(abi.IMAGE_GPA <= s.gpa < s.end_page <= abi.DOORBELL_GPA for s in image.segments)
    assert isinstance(image.symbols.place(image.entry), Place)

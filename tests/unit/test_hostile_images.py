"""Images that are made to cost: each is refused, or loaded and looked into, for little."""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
from unit.elf_maker import (
    ABI_NOTE,
    DATA,
    ENTRY,
    PT_LOAD,
    PT_NOTE,
    READ,
    Elf,
    note,
)
from unit.image_scene import MIB, costs, guest, quick

from vmm.errors import GuestImageError, Place
from vmm.guest import elf, files, image
from vmm.guest.image import Image, Room, load_image, parse_image

SMALL = Room(16 * MIB, 256 << 10)


# ---- Loading ----


def test_an_image_is_refused_for_its_size_before_any_of_it_is_read(tmp_path: Path) -> None:
    hole = 100 * MIB
    loads = [(PT_LOAD, DATA, 0x10000, 0x300000 + n * MIB, MIB, MIB) for n in range(62)]
    path = tmp_path / "holes.elf"
    path.write_bytes(Elf(loads=loads).pack())
    os.truncate(path, hole)
    with costs(1), pytest.raises(GuestImageError, match=r"ends at 0x\w+: 16 MiB of private memory"):
        load_image(path, SMALL)
    assert len(load_image(path).segments) == 63


def test_of_a_large_file_only_what_is_loaded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.elf"
    path.write_bytes(guest().pack())
    os.truncate(path, 200 * MIB)
    with costs(1):
        assert load_image(path).symbols.place(ENTRY) == Place("main")


@pytest.mark.parametrize("junk", [note(b"GNU", 3, b"12345678"), bytes(12), b"\xff" * 24])
def test_200_000_notes_are_looked_through_quickly_and_more_not_at_all(junk: bytes) -> None:
    most = elf._MOST_NOTE_BYTES
    among, beyond = (Elf(junk * n + ABI_NOTE).pack() for n in (200_000, most // len(junk) + 1))
    with quick():
        if junk[0] != 0xFF:  # that is one note, which does not end
            assert parse_image(among, "x.elf")
        with pytest.raises(GuestImageError, match="no pageferry ABI note"):
            parse_image(beyond, "x.elf")


def test_the_note_is_found_behind_those_of_another_alignment() -> None:
    property_note = note(b"GNU", 5, b"123456781234", align=8)
    assert parse_image(Elf(property_note + ABI_NOTE).pack(), "x.elf")


@pytest.mark.parametrize("sections", [4000, 10, 0])
def test_a_symbol_is_found_among_as_many_sections_as_are_looked_at(sections: int) -> None:
    data = guest().pack(empty_sections=sections)
    with costs(8):
        assert parse_image(data, "x.elf").symbols.place(ENTRY + 2) == Place("main", 2)


@pytest.mark.parametrize("sections", [5000, 70_000])
def test_among_more_sections_no_symbol_is_looked_for(sections: int) -> None:
    data = guest().pack(empty_sections=sections)
    with costs(1):
        loaded = parse_image(data, "x.elf")
    assert (loaded.symbols.held, loaded.symbols.place(ENTRY)) == (0, Place())


def test_names_of_sections_that_do_not_end_are_not_read_for_each() -> None:
    made = guest()
    made.section("n" * (4 * MIB), b"")
    data = bytearray(made.pack(empty_sections=1000))
    names, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    start = struct.unpack_from("<Q", data, names + 64 * (count - 1) + 24)[0]
    for header in range(names, names + 64 * count, 64):
        struct.pack_into("<I", data, header, data.index(b"nnnn", start) - start)
    with costs(24), quick():
        parse_image(bytes(data), "x.elf")


@pytest.mark.parametrize("junk", [b"\xff", b"\0", b"\x08\x08"])
def test_what_tells_of_sections_may_be_garbage(junk: bytes) -> None:
    whole = guest().pack()
    data = bytearray(whole)
    for first, last in ((8, 16), (40, 48), (58, 64)):
        data[first:last] = (junk * 8)[: last - first]
    loaded = parse_image(bytes(data), "x.elf")
    assert loaded.segments == parse_image(whole, "x.elf").segments


def test_a_note_segment_without_bytes_may_name_any_offset() -> None:
    made = Elf(loads=[(PT_NOTE, READ, 1 << 60, 0, 0, 0)])
    assert parse_image(made.pack(), "x.elf")


def test_more_sections_than_any_image_has_are_not_looked_at() -> None:
    data = bytearray(guest().pack())
    start = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<H", data, 60, 0)  # e_shnum: the first section says how many
    struct.pack_into("<Q", data, start + 32, 1 << 40)
    assert parse_image(bytes(data), "x.elf").symbols.place(ENTRY) == Place()


def test_sections_of_more_than_is_kept_are_left_in_the_file() -> None:
    made = guest(debug_line=bytes(elf.MOST_KEPT), debug_str=b"x")
    loaded = parse_image(made.pack(), "x.elf")
    assert loaded.symbols.held < MIB
    assert loaded.symbols.place(ENTRY) == Place("main")


def test_the_images_that_are_cached_are_few_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: OrderedDict[tuple[str, tuple[int, ...]], Image] = OrderedDict()
    monkeypatch.setattr(image._files, "_cache", kept)
    paths = [tmp_path / f"{n}.elf" for n in range(70)]
    for path in paths:
        path.write_bytes(guest().pack())
        assert load_image(path) is load_image(path)
    assert [key[0] for key in kept] == [str(path) for path in paths[-64:]]
    load_image(paths[6])
    monkeypatch.setattr(files, "_MOST_CACHED_BYTES", 3 * load_image(paths[6]).held)
    newest = load_image(paths[0])
    assert [key[0] for key in kept] == [str(paths[n]) for n in (69, 6, 0)]
    assert load_image(paths[0]) is newest


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "changing.elf"
    path.write_bytes(guest().pack())
    pread = os.pread

    def meanwhile(fd: int, length: int, offset: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"more")
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", meanwhile)
    with pytest.raises(GuestImageError, match="was changed while it was read: try again"):
        load_image(path)


# ---- Segments ----


@pytest.mark.parametrize("offset", [1 << 20, (1 << 64) - 1, 0])
def test_a_segment_without_bytes_in_the_file_may_name_any_offset(offset: int) -> None:
    made = Elf(loads=[(PT_LOAD, DATA, offset, 0x300000, 0, 0x5000)])
    zeros = parse_image(made.pack(), "x.elf").segments[-1]
    assert (zeros.gpa, zeros.data, zeros.size) == (0x300000, b"", 0x5000)


def test_a_segment_of_no_size_is_nothing() -> None:
    made = Elf(loads=[(PT_LOAD, DATA, 1 << 40, 0, 0, 0)])
    assert len(parse_image(made.pack(), "x.elf").segments) == 1


def test_a_file_without_sections_cut_after_its_last_byte_is_whole() -> None:
    made = Elf(loads=[(PT_LOAD, DATA, 0x3000, 0x300000, 0, 0x1000)])
    data = bytearray(made.pack())
    struct.pack_into("<Q", data, 40, (1 << 64) - 1)  # where sections would be
    cut = bytes(data[: 0x2000 + len(ABI_NOTE)])
    loaded = parse_image(cut, "x.elf")
    assert loaded.segments == parse_image(made.pack(), "x.elf").segments
    assert loaded.symbols.place(ENTRY) == Place()
    assert parse_image(cut + b"more", "x.elf").segments == loaded.segments
    with pytest.raises(GuestImageError, match="truncated"):
        parse_image(cut[:-1], "x.elf")


@pytest.mark.parametrize("count", [65, 0xFFFF])
def test_program_headers_that_are_counted_elsewhere_are_too_many(count: int) -> None:
    data = bytearray(Elf().pack())
    struct.pack_into("<H", data, 56, count)
    with pytest.raises(GuestImageError, match=f"{count} program headers are too many"):
        parse_image(bytes(data), "x.elf")


@pytest.mark.parametrize("size", [0, 32, 55, 57, 0xFFFF])
def test_program_headers_of_another_size_are_malformed(size: int) -> None:
    data = bytearray(Elf().pack())
    struct.pack_into("<H", data, 54, size)
    with pytest.raises(GuestImageError, match="malformed"):
        parse_image(bytes(data), "x.elf")


def test_images_may_fill_what_there_is_below_the_stack() -> None:
    room = Room(4 * MIB, 1 * MIB)
    for end, fits in ((3 * MIB, True), (3 * MIB + 1, False)):
        made = Elf(loads=[(PT_LOAD, DATA, 0, 0x280000, 0, end - 0x280000)]).pack()
        if fits:
            assert parse_image(made, "x.elf", room).end == end
        else:
            with pytest.raises(GuestImageError, match="with a stack of 1 MiB is too small"):
                parse_image(made, "x.elf", room)

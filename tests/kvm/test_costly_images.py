"""Guests whose images are made to cost, to deceive, or were cut to what is needed."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from command import one_line, pageferry
from unit.elf_maker import line_unit

from vmm import GuestImageError, Monitor, Place
from vmm.ferry.events import Event
from vmm.guest.symbols import Symbols

pytestmark = pytest.mark.not_in_lanes("what an image costs who reads it")

Elf = Callable[[str], Path]
SMALL = {"window": "4M", "memory": "4M"}


def with_lines(elf: bytes, table: bytes) -> bytes:
    """Replace an image's line table."""
    start, count, names = (struct.unpack_from(f, elf, at)[0] for f, at in SECTIONS)
    strings = struct.unpack_from("<Q", elf, start + 64 * names + 24)[0]
    changed = bytearray(elf)
    for header in range(start, start + 64 * count, 64):
        name = strings + struct.unpack_from("<I", elf, header)[0]
        if elf.startswith(b".debug_line\0", name):
            struct.pack_into("<QQ", changed, header + 24, len(elf), len(table))
            return bytes(changed) + table
    raise AssertionError("no line table")


SECTIONS = (("<Q", 40), ("<H", 60), ("<H", 62))  # e_shoff, e_shnum, e_shstrndx


@pytest.fixture
def bomb(guest_elf: Elf, tmp_path: Path) -> Path:
    """A guest that faults at once, with more lines before the place than anybody counts."""
    program = b"\0\x09\2" + struct.pack("<Q", 0x200000) + b"\x12" * (1 << 20)
    path = tmp_path / "bomb.elf"
    elf = guest_elf("faults/undefined_instruction").read_bytes()
    path.write_bytes(with_lines(elf, line_unit(program)))
    return path


def test_nobody_looks_for_a_faults_place_while_machines_run(
    monitor: Monitor, bomb: Path, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    place = Symbols.place

    def seen(self: Symbols, rip: int) -> Place:
        asked.append(rip)
        return place(self, rip)

    monkeypatch.setattr(Symbols, "place", seen)
    bad = monitor.spawn(bomb, name="bad", **SMALL)
    good = monitor.spawn(test_guest("says_hello"), name="good", **SMALL)
    monitor.run(20)
    assert good.exit_code == 3
    assert bad.fault is not None
    assert (bad.fault.kind, bad.fault.vector, asked) == ("exception", 6, [])
    text = str(bad.fault)
    assert asked == [bad.fault.rip]
    assert text.endswith(f"rip {bad.fault.rip:#x} (main+{bad.fault.place.offset:#x})")
    assert str(bad.fault) == text
    assert (bad.fault.place.file, bad.fault.place.line) == (None, None)


def test_an_event_has_the_fault_with_its_place_which_holds_nobody_up(
    monitor: Monitor, events: list[Event], guest_elf: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []
    place = Symbols.place

    def seen(self: Symbols, rip: int) -> Place:
        other = threading.Thread(target=monitor.audit, daemon=True)
        other.start()
        other.join(2)
        locked.append(other.is_alive())
        return place(self, rip)

    monkeypatch.setattr(Symbols, "place", seen)
    bad = monitor.spawn(guest_elf("faults/undefined_instruction"), **SMALL)
    monitor.run(20)
    assert locked == [False]
    [stop] = [event for event in events if event.kind == "stop"]
    assert bad.fault is not None
    assert stop.fields["fault"] == bad.fault.as_json()
    assert stop.fields["fault"]["file"] == "undefined_instruction.c"


def test_a_symbol_neither_steers_the_terminal_nor_says_what_pageferry_says(
    guest_elf: Elf, tmp_path: Path
) -> None:
    path = tmp_path / "evil.elf"
    elf = guest_elf("faults/undefined_instruction").read_bytes()
    assert b"\0main\0" in elf
    path.write_bytes(elf.replace(b"\0main\0", b"\0\x1b[J\n\0"))
    ended = pageferry("run", path)
    mark = "\N{REPLACEMENT CHARACTER}"
    assert (ended.code, ended.out) == (70, "")
    assert f"({mark}[J{mark}+0x" in one_line(ended.err)
    seen = pageferry("run", path, "--json")
    assert json.loads(seen.out)[0]["fault"]["symbol"] == f"{mark}[J{mark}"
    assert seen.out.isascii()


def stripped(elf: bytes) -> bytes:
    """Return a program without sections, cut after the last byte that is loaded; what has no bytes
    in the file lies behind its end.
    """
    cut, end = bytearray(elf), 0
    programs, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    for header in range(programs, programs + 56 * count, 56):
        offset, size = (struct.unpack_from("<Q", elf, header + at)[0] for at in (8, 32))
        if size:
            end = max(end, offset + size)
        else:
            struct.pack_into("<Q", cut, header + 8, len(elf))
    struct.pack_into("<Q", cut, 40, 0)
    struct.pack_into("<HHH", cut, 58, 0, 0, 0)
    return bytes(cut[:end])


@pytest.mark.parametrize("name", ["says_hello", "own_data"])
def test_a_guest_that_was_cut_to_what_is_loaded_runs(
    monitor: Monitor, test_guest: Elf, tmp_path: Path, name: str
) -> None:
    whole, path = test_guest(name), tmp_path / "cut.elf"
    path.write_bytes(stripped(whole.read_bytes()))
    machines = [monitor.spawn(elf, name=elf.stem, **SMALL) for elf in (whole, path)]
    monitor.run(20)
    assert [m.fault for m in machines] == [None, None]
    assert machines[0].exit_code == machines[1].exit_code


def test_an_image_too_large_for_its_machine_is_refused_without_being_read(
    monitor: Monitor, test_guest: Elf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(fd, length, offset)

    path = tmp_path / "large.elf"
    elf = bytearray(test_guest("large_bss").read_bytes())
    path.write_bytes(elf)
    monkeypatch.setattr(os, "pread", counted)
    with pytest.raises(GuestImageError, match="4 MiB of private memory"):
        monitor.spawn(path, **SMALL)
    assert sum(read) < 8192
    assert monitor.machines == {}

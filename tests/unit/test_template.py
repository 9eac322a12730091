"""Templates: many copies of the same bytes, each of which changes alone."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.errors import ResourceError
from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory import template as template_module
from vmm.memory.mapping import Mapping
from vmm.memory.private import PrivateMemory
from vmm.memory.region import OutOfBounds, Region
from vmm.memory.template import Template

SIZE = 8 * PAGE_SIZE
DATA = b"across a page's end"
WHERE = 2 * PAGE_SIZE - 5
CONTENTS = (bytes(3) + b"head").ljust(WHERE, b"\0") + DATA


@pytest.fixture
def template(no_leaks: None) -> Iterator[Template]:
    template = Template([(WHERE, DATA), (3, b"head"), (5 * PAGE_SIZE, b"")])
    yield template
    template.close()
    template.close()


@pytest.fixture
def pair(template: Template) -> Iterator[tuple[PrivateMemory, PrivateMemory]]:
    memories = PrivateMemory(Region(0, SIZE), template), PrivateMemory(Region(0, SIZE), template)
    yield memories
    for memory in memories:
        memory.close()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("pageferry-image")


def test_it_holds_its_parts_and_zeros_between_them_in_whole_pages(template: Template) -> None:
    assert template.size == 3 * PAGE_SIZE
    assert os.pread(template.fd, SIZE, 0) == CONTENTS.ljust(template.size, b"\0")


def test_it_may_be_as_long_as_the_memory_which_is_one_mapping_then(no_leaks: None) -> None:
    template = Template([(WHERE, DATA), (3, b"head")], SIZE)
    assert template.size == os.fstat(template.fd).st_size == SIZE
    memories = [PrivateMemory(Region(0, SIZE), template) for _ in range(2)]
    assert mappings() == 2
    before = memories[1].read(0, SIZE)
    assert before == CONTENTS.ljust(SIZE, b"\0")
    for gpa in range(0, SIZE, PAGE_SIZE):
        memories[0].write(gpa, b"mine")
    assert memories[1].read(0, SIZE) == before
    assert os.pread(template.fd, SIZE, 0) == before
    for memory in memories:
        memory.close()
    assert not mappings()
    template.close()


def test_where_address_space_is_memory_it_is_no_longer_than_its_contents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template_module, "_strict", lambda: True)
    template = Template([(0, DATA)], SIZE)
    assert template.size == PAGE_SIZE
    template.close()


def test_pages_that_are_made_a_memorys_own_have_what_they_had(
    pair: tuple[PrivateMemory, PrivateMemory],
) -> None:
    one, other = pair
    before = other.read(0, SIZE)
    one.own(PAGE_SIZE, PAGE_SIZE)
    assert written_pages(one) == {1}
    assert one.read(0, SIZE) == before
    with pytest.raises(OutOfBounds):
        one.own(SIZE, PAGE_SIZE)


def written_pages(memory: PrivateMemory) -> set[int]:
    """Return the pages that are neither the file's nor untouched (bits 63 and 61)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(memory.address // PAGE_SIZE * 8)
        entries = struct.unpack(f"<{SIZE // PAGE_SIZE}Q", file.read(SIZE // PAGE_SIZE * 8))
    return {page for page, entry in enumerate(entries) if entry >> 63 and not entry >> 61 & 1}


def test_nobody_can_change_it_or_its_size(template: Template) -> None:
    for change in (
        lambda: os.pwrite(template.fd, b"x", 0),
        lambda: os.ftruncate(template.fd, 0),
        lambda: os.ftruncate(template.fd, SIZE),
        lambda: mmap.mmap(template.fd, PAGE_SIZE),
        lambda: mapping.show(0, PAGE_SIZE, template.fd, 0),
        lambda: mapping.punch(template.fd, 0, PAGE_SIZE),
    ):
        with pytest.raises(PermissionError):
            change()


def test_a_memory_begins_as_its_copy_and_goes_on_with_zeros(
    pair: tuple[PrivateMemory, PrivateMemory],
) -> None:
    for memory in pair:
        assert memory.read(0, SIZE) == CONTENTS.ljust(SIZE, b"\0")


def test_no_memory_sees_what_is_written_to_another_nor_does_the_template(
    template: Template, pair: tuple[PrivateMemory, PrivateMemory]
) -> None:
    one, other = pair
    before = os.pread(template.fd, SIZE, 0)
    for gpa in range(0, SIZE, PAGE_SIZE):
        one.write(gpa, b"mine")
    with memoryview(other.view(SIZE - 4, 4)) as end:
        end[:] = b"last"
    assert one.read(WHERE, 5) == DATA[:5]
    assert one.read(2 * PAGE_SIZE, 8) == b"mine" + DATA[9:13]
    assert other.read(0, SIZE) == CONTENTS.ljust(SIZE - 4, b"\0") + b"last"
    assert os.pread(template.fd, SIZE, 0) == before


def test_a_memory_outlives_its_template(template: Template) -> None:
    memory = PrivateMemory(Region(0, SIZE), template)
    template.close()
    assert memory.read(WHERE, len(DATA)) == DATA
    memory.write(WHERE, b"A")
    assert memory.read(WHERE, 2) == b"A" + DATA[1:2]
    memory.close()
    memory.close()
    assert not mappings()


@pytest.mark.parametrize("flag", [mapping._MAP_FIXED_NOREPLACE, 0])
def test_a_copy_is_mapped_where_nothing_is(
    template: Template, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    """Without the flag, as before Linux 4.17, the address is a wish."""
    monkeypatch.setattr(mapping, "_MAP_FIXED_NOREPLACE", flag)
    with Mapping.anonymous(SIZE) as there:
        address = there.address
        with memoryview(there.view()) as view:
            view[:] = b"x" * SIZE
            assert not mapping.copy(there.address, template.size, template.fd, replace=False)
            assert bytes(view) == b"x" * SIZE
        assert not mappings()
        assert mapping.copy(there.address, template.size, template.fd, replace=True)
        with memoryview(there.view()) as view:
            assert bytes(view[3:7]) == b"head"
    assert not mappings()
    assert mapping.copy(address, template.size, template.fd, replace=False)
    Mapping(address, template.size).close()


def test_where_something_is_in_the_way_the_memory_is_mapped_elsewhere(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = mapping.copy
    monkeypatch.setattr(
        mapping, "copy", lambda *a, replace, into=None: replace and copy(*a, replace=True)
    )
    memory = PrivateMemory(Region(0, SIZE), template)
    assert mappings() == 1
    assert memory.read(0, SIZE) == CONTENTS.ljust(SIZE, b"\0")
    memory.close()
    assert not mappings()


@pytest.mark.parametrize("refused", [False, True])
def test_what_the_kernel_refuses_leaves_nothing_mapped(
    template: Template, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """It refuses the copy below other memory, or the one that replaces some."""

    def refuse(*_: int, replace: bool, into: object = None) -> bool:
        if replace is refused:
            raise OSError(errno.ENOMEM, "no more mappings")
        return False

    monkeypatch.setattr(mapping, "copy", refuse)
    before = address_space()
    with pytest.raises(OSError, match="no more mappings"):
        template.map(8 << 30)
    assert address_space() < before + (4 << 20)
    with pytest.raises(ResourceError, match="no address space"):
        template.map(1 << 50)


def address_space() -> int:
    """Return the KiB that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE // 1024


def test_a_template_knows_where_it_has_contents() -> None:
    template = Template(
        [(3 * PAGE_SIZE + 5, b"xy"), (0, b"a"), (7 * PAGE_SIZE - 1, b"bc"), (9, b"")]
    )
    pages = [(start // PAGE_SIZE, end // PAGE_SIZE) for start, end in template.given]
    assert pages == [(0, 1), (3, 4), (6, 8)]
    template.close()

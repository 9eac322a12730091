"""Mappings, by what the kernel says of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests_support import descriptors_left

from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.mapping import GIANT, HUGE, Mapping
from vmm.memory.pagemap import frame_number, kept_in_place
from vmm.memory.pool import PagePool

PAGES = 8


class Line(NamedTuple):
    """What /proc/self/maps says of one address; what has no name has no offset either."""

    protection: str
    offset: int
    name: str


def kernels_word(address: int) -> Line | None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, protection, offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end:
            return Line(
                protection, int(offset, 16) + address - start if name else 0, " ".join(name)
            )
    return None


@pytest.fixture
def pool() -> Iterator[PagePool]:
    pool = PagePool(PAGES)
    yield pool
    pool.close()


@pytest.fixture
def window() -> Iterator[Mapping]:
    with Mapping.reserve(PAGES * PAGE_SIZE) as window:
        yield window


def page(window: Mapping, index: int) -> int:
    return window.address + index * PAGE_SIZE


@pytest.mark.parametrize(
    ("size", "align"), [(HUGE, HUGE), (GIANT, HUGE), (GIANT + HUGE, GIANT), (3 * GIANT, GIANT)]
)
def test_reserved_address_space_begins_where_its_pages_can_be_moved_as_a_whole(
    size: int, align: int
) -> None:
    with Mapping.reserve(size) as window:
        assert (window.size, window.address % align) == (size, 0)


def test_reserved_address_space_is_accessible_to_nobody(window: Mapping) -> None:
    for index in (0, PAGES - 1):
        assert kernels_word(page(window, index)) == Line("---p", 0, "")


def test_shown_pages_are_the_files(window: Mapping, pool: PagePool) -> None:
    os.pwrite(pool.fd, b"third", 3 * PAGE_SIZE)
    mapping.show(page(window, 5), 2 * PAGE_SIZE, pool.fd, 3 * PAGE_SIZE)
    assert ctypes.string_at(page(window, 5), 5) == b"third"
    ctypes.memmove(page(window, 6), b"fourth", 6)
    assert os.pread(pool.fd, 6, 4 * PAGE_SIZE) == b"fourth"
    for index, offset in ((5, 3), (6, 4)):
        line = kernels_word(page(window, index))
        assert line is not None
        assert (line.protection, line.offset) == ("rw-s", offset * PAGE_SIZE)
        assert "pageferry-pool" in line.name
    for index in (4, 7):
        assert kernels_word(page(window, index)) == Line("---p", 0, "")


def test_hidden_pages_are_inaccessible_and_still_reserved(window: Mapping, pool: PagePool) -> None:
    mapping.show(window.address, PAGES * PAGE_SIZE, pool.fd, 0)
    ctypes.memmove(page(window, 3), b"kept", 4)
    mapping.hide(page(window, 2), 3 * PAGE_SIZE)
    protections = [kernels_word(page(window, index)) for index in range(PAGES)]
    assert [line and line.protection for line in protections] == [
        *["rw-s"] * 2,
        *["---p"] * 3,
        *["rw-s"] * 3,
    ]
    assert os.pread(pool.fd, 4, 3 * PAGE_SIZE) == b"kept"


def test_touching_a_hidden_page_kills_the_process_that_does() -> None:
    script = (
        "import ctypes, os\n"
        "from vmm.memory import mapping\n"
        "window = mapping.Mapping.anonymous(8192)\n"
        "ctypes.memset(window.address, 1, 8192)\n"
        "mapping.hide(window.address, 4096)\n"
        "ctypes.memset(window.address + 4096, 1, 4096)\n"
        "os.write(1, b'so far')\n"
        "ctypes.string_at(window.address, 1)\n"
    )
    done = run_python(script)
    assert (done.stdout, done.returncode) == ("so far", -11)


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_anonymous_memory_is_zero_and_writable() -> None:
    with Mapping.anonymous(2 * PAGE_SIZE) as memory:
        view = memory.view()
        assert bytes(view) == bytes(2 * PAGE_SIZE)
        view[PAGE_SIZE : PAGE_SIZE + 2] = b"ok"
        assert ctypes.string_at(page(memory, 1), 2) == b"ok"
        view.release()


def test_a_shared_mapping_is_the_whole_file(pool: PagePool) -> None:
    with Mapping.shared(PAGES * PAGE_SIZE, pool.fd) as shared:
        ctypes.memmove(page(shared, PAGES - 1), b"last", 4)
        assert os.pread(pool.fd, 4, (PAGES - 1) * PAGE_SIZE) == b"last"


def test_closing_unmaps_the_range_and_again_does_nothing() -> None:
    window = Mapping.reserve(PAGES * PAGE_SIZE)
    address = window.address
    window.close()
    assert kernels_word(address) is None
    # Were the range unmapped again, it would be somebody else's by now.
    mapping._mmap(address, PAGE_SIZE, mmap.PROT_READ, mapping._HIDDEN | mapping._MAP_FIXED, -1, 0)
    window.close()
    assert kernels_word(address) == Line("r--p", 0, "")
    Mapping(address, PAGE_SIZE).close()
    assert kernels_word(address) is None


def test_whoever_uses_a_mapping_that_was_closed_gets_an_error_and_nobody_elses_memory(
    pool: PagePool,
) -> None:
    window = Mapping.anonymous(PAGES * PAGE_SIZE)
    window.close()
    with pytest.raises(ValueError, match="closed"):
        window.view()
    for change in (mapping.hide, mapping.empty):
        with pytest.raises(OSError, match=r"mmap|madvise"):
            change(window.address, PAGE_SIZE)
    with pytest.raises(OSError, match="mmap"):
        mapping.show(window.address, PAGE_SIZE, pool.fd, 0)
    with pytest.raises(OSError, match="Bad address"):
        frame_number(window.address)


def test_the_frame_of_a_page_that_is_hidden_is_an_error(window: Mapping, pool: PagePool) -> None:
    mapping.show(window.address, PAGE_SIZE, pool.fd, 0)
    frame_number(window.address)
    mapping.hide(window.address, PAGE_SIZE)
    with pytest.raises(OSError, match="Bad address"):
        frame_number(window.address)


MADV_COLLAPSE = 25  # Linux 6.1


def collapse(address: int) -> bool:
    """Have the kernel make a huge page of what is there now, as khugepaged does whenever it likes;
    return whether it has.
    """
    return mapping._madvise(address, HUGE, MADV_COLLAPSE) == 0


@pytest.mark.parametrize("pages", [1, 5, 40])
def test_a_page_keeps_its_frame_in_the_block_whatever_the_kernel_makes_of_its_neighbours(
    pages: int,
) -> None:
    def frames() -> list[int | None]:
        return [frame_number(page(memory, i)) for i in range(pages)]

    with Mapping.park(HUGE) as memory:
        memory.view()[: pages * PAGE_SIZE] = b"x" * pages * PAGE_SIZE
        before = frames()
        with kept_in_place(memory.address, pages):
            assert not collapse(memory.address)
            assert frames() == before
        if None not in before and collapse(memory.address):
            assert not set(frames()) & set(before)
        assert memory.view()[: pages * PAGE_SIZE] == b"x" * pages * PAGE_SIZE


def test_pages_that_cannot_be_kept_in_place_are_let_go(window: Mapping) -> None:
    with kept_in_place(window.address):  # hidden
        pass
    with descriptors_left(1), kept_in_place(window.address):
        pass


def test_with_closes_after_an_error_too() -> None:
    window = Mapping.reserve(PAGE_SIZE)
    address = window.address
    with pytest.raises(KeyError), window:
        raise KeyError
    assert kernels_word(address) is None


def test_an_exhausted_address_space_is_a_resource_error() -> None:
    script = (
        "import resource\n"
        "from vmm.errors import ResourceError\n"
        "from vmm.memory.mapping import Mapping\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "for make in (Mapping.reserve, Mapping.anonymous):\n"
        "    try:\n"
        "        make(8 << 30)\n"
        "    except ResourceError as error:\n"
        "        print(error)\n"
        "Mapping.reserve(1 << 20).close()\n"
    )
    done = run_python(script)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert "no address space for a window of 8589934592 bytes" in first
    assert "no address space for private memory of 8589934592 bytes" in second
    assert "ulimit -v" in first


def test_a_refused_call_is_an_os_error_that_names_it(window: Mapping, pool: PagePool) -> None:
    mapping.show(window.address, PAGE_SIZE, pool.fd, 0)
    with pytest.raises(OSError, match="mmap of 4096 bytes for a window: Bad file descriptor"):
        mapping.show(window.address, PAGE_SIZE, -1, 0)
    with pytest.raises(OSError, match="mmap of 4096 bytes for a window: Invalid argument"):
        mapping.show(window.address, PAGE_SIZE, pool.fd, 1)
    with pytest.raises(
        OSError, match=r"fallocate\(PUNCH_HOLE\) of 4096 bytes: Bad file descriptor"
    ):
        mapping.punch(-1, 0, PAGE_SIZE)
    with pytest.raises(OSError, match="mmap of 4096 bytes for the page pool: Bad file descriptor"):
        Mapping.shared(PAGE_SIZE, -1)
    line = kernels_word(window.address)
    assert line is not None
    assert line.protection == "rw-s"

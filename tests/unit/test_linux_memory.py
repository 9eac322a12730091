"""A Linux program's memory without a program: contents, pointers, and changes that are cut off."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator

import pytest
from cut_off import Tracer

from vmm.guest import abi
from vmm.guest.x86 import LARGE_PAGE, PAGE
from vmm.linux import boot
from vmm.linux.areas import Areas
from vmm.linux.errors import SysError
from vmm.linux.memory import Memory
from vmm.linux.plans import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE
from vmm.memory import mapping, maps
from vmm.memory.private import PrivateMemory
from vmm.memory.region import OutOfBounds
from vmm.memory.template import Template

EVERY = os.environ.get("PAGEFERRY_SWEEP") == "all"
MIB = 1 << 20
IMAGE = 0x400000
IMAGE_BYTES = bytes(range(256)) * 16 * 40  # of 40 pages, some more than is cleared by hand
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANONYMOUS | MAP_FIXED
LAYOUT = boot.plan(32 * MIB, 16 * LARGE_PAGE, 64 << 10, 2 * MIB)
ARENA = LAYOUT.arena

_templates: list[Template] = []


def make(limit: int = 1 << 40) -> Memory:
    """A program's memory with an image of 40 pages, read-only."""
    if not _templates:
        _templates.append(Template([*boot.contents(), (IMAGE, IMAGE_BYTES)]))
    private = PrivateMemory(LAYOUT.private, _templates[0], aligned=True)
    areas = Areas(LAYOUT.low, ARENA, limit, LAYOUT.stack.size)
    memory = Memory(private, areas, LAYOUT.window)
    memory.mmap(IMAGE, len(IMAGE_BYTES), 1, MAP_PRIVATE | MAP_FIXED)
    areas.start_heap(IMAGE + MIB)
    return memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = make()
    yield made
    made.close()
    made.close()


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(SysError) as caught:
        call(*arguments)
    assert caught.value.number == number


# ---- pointers ----


def test_what_was_written_is_read(memory: Memory) -> None:
    place = memory.mmap(0, 3 * PAGE, 3, ANONYMOUS)
    memory.write(place + PAGE - 3, b"across two pages")
    assert memory.read(place + PAGE - 3, 16) == b"across two pages"
    memory.write(place, bytearray((1, 0, 0, 0, 0, 0, 0, 0x80)))
    memory.write(place + 8, memoryview(b"\2" + bytes(7)))
    assert memory.words(place, 2) == ((1 << 63) + 1, 2)
    view = memory.view(place, 3 * PAGE, write=True)
    assert view is not None
    view[5] = 9
    assert memory.read(place + 5, 1) == b"\x09"
    seen = memory.view(place, PAGE)
    assert seen is not None
    assert seen.readonly


def test_rights_are_those_of_the_program(memory: Memory) -> None:
    place = memory.mmap(0, 4 * PAGE, 3, ANONYMOUS)
    memory.mprotect(place + PAGE, PAGE, 1)
    memory.mprotect(place + 2 * PAGE, PAGE, 0)
    memory.mprotect(place + 3 * PAGE, PAGE, 2)
    memory.write(place, bytes(PAGE))
    assert memory.read(place, 2 * PAGE)
    refused(errno.EFAULT, memory.write, place + PAGE - 1, b"xy")
    with pytest.raises(SysError):
        memory.view(place, PAGE + 1, write=True)
    assert memory.view(place, PAGE + 1) is not None
    assert memory.read(place + PAGE - 1, 1) == b"\0", "nothing has been written"
    refused(errno.EFAULT, memory.read, place + 2 * PAGE, 1)
    refused(errno.EFAULT, memory.read, place + 2 * PAGE - 1, 2)
    memory.write(place + 3 * PAGE, b"x")
    assert memory.read(place + 3 * PAGE, 1) == b"x", "x86 has no right to write alone"
    assert memory.room(place, 9 * PAGE) == 2 * PAGE
    assert memory.room(place + 5, 9 * PAGE, write=True) == PAGE - 5
    assert memory.room(place + 5, 7, write=True) == 7
    assert memory.room(place + 2 * PAGE, 1) == 0


@pytest.mark.parametrize(
    "address",
    [
        *(0, 1, 0x1000, 0x3000, 0x8000, 0x40000, LAYOUT.low.base, IMAGE - 1, IMAGE + MIB),
        *(abi.DOORBELL_GPA, boot.GATE, abi.WINDOW_GPA, abi.WINDOW_GPA + 2 * MIB),
        *(ARENA.base, ARENA.end, LAYOUT.tables.root, 1 << 46, 1 << 63, (1 << 64) - PAGE),
        *((1 << 64) - 1, LAYOUT.stack.base - 1),
    ],
)
def test_what_is_not_the_programs_is_a_bad_address(memory: Memory, address: int) -> None:
    refused(errno.EFAULT, memory.read, address, 8)
    refused(errno.EFAULT, memory.write, address, bytes(8))
    refused(errno.EFAULT, memory.text, address, 8)
    refused(errno.EFAULT, memory.words, address, 1)
    refused(errno.EFAULT, memory.view, address, 8)
    refused(errno.EFAULT, memory.raw, address, 8)
    assert memory.room(address, 8) == 0
    assert memory.read(address, 0) == b""
    memory.write(address, b"")


@pytest.mark.parametrize("size", [1 << 30, 1 << 47, 1 << 63, (1 << 64) - 1])
def test_no_size_is_too_large_to_be_refused(memory: Memory, size: int) -> None:
    place = memory.mmap(0, PAGE, 3, ANONYMOUS)
    refused(errno.EFAULT, memory.read, place, size)
    refused(errno.EFAULT, memory.view, place, size)
    assert memory.room(place, size) == PAGE


def test_the_control_structure_may_be_pointed_to(memory: Memory) -> None:
    memory.write(abi.CONTROL_GPA + 100, b"payload")
    assert memory.read(abi.CONTROL_GPA + 100, 7) == b"payload"
    assert memory.room(abi.CONTROL_GPA, 5) == 5
    refused(errno.EFAULT, memory.read, abi.CONTROL_GPA - 1, 2)


def test_text_ends_with_its_nul(memory: Memory) -> None:
    place = memory.mmap(0, 2 * PAGE, 3, ANONYMOUS)
    memory.write(place, b"name\0more")
    assert memory.text(place, 100) == b"name"
    assert memory.text(place + 4, 100) == b""
    memory.write(place + PAGE - 2, b"over\0")
    assert memory.text(place + PAGE - 2, 100) == b"over"
    assert memory.text(place + PAGE - 2, 5) == b"over"
    refused(errno.ENAMETOOLONG, memory.text, place + PAGE - 2, 4)
    memory.write(place + 2 * PAGE - 2, b"ab")
    refused(errno.EFAULT, memory.text, place + 2 * PAGE - 2, 100)
    assert memory.text(IMAGE, 10) == b""


def test_a_file_is_filled_in_whatever_the_rights(memory: Memory) -> None:
    place = memory.mmap(0, 2 * PAGE, 1, MAP_PRIVATE)
    memory.fill(place + 1, b"content")
    assert memory.read(place, 9) == b"\0content\0"
    refused(errno.EFAULT, memory.fill, place + PAGE, bytes(PAGE + 1))


def test_the_map_is_looked_at_each_time(memory: Memory) -> None:
    place = memory.mmap(0, PAGE, 3, ANONYMOUS)
    memory.write(place, b"x")
    memory.mprotect(place, PAGE, 1)
    refused(errno.EFAULT, memory.write, place, b"x")
    assert memory.read(place, 1) == b"x"
    memory.munmap(place, PAGE)
    refused(errno.EFAULT, memory.read, place, 1)


# ---- contents ----


@pytest.mark.parametrize("pages", [2, 20, 40])
def test_what_replaces_the_image_is_zeros(memory: Memory, pages: int) -> None:
    assert memory.read(IMAGE, len(IMAGE_BYTES)) == IMAGE_BYTES
    size = pages * PAGE
    memory.mmap(IMAGE, size, 3, FIXED)
    assert memory.read(IMAGE, len(IMAGE_BYTES)) == bytes(size) + IMAGE_BYTES[size:]


def test_an_image_cut_to_pieces_takes_no_more_mappings_than_it_may(memory: Memory) -> None:
    before = host_areas(memory)
    for _ in range(100):
        for page in range(0, 40, 20):
            memory.mmap(IMAGE + page * PAGE, 17 * PAGE, 3, FIXED)
            memory.write(IMAGE + page * PAGE, b"x")
            memory.mmap(IMAGE + page * PAGE, 17 * PAGE, 3, FIXED)
            assert memory.read(IMAGE + page * PAGE, 1) == b"\0"
    assert host_areas(memory) <= before + 40


def test_pages_given_back_are_zeros_but_for_a_files(memory: Memory) -> None:
    place = memory.mmap(0, 3 * PAGE, 3, ANONYMOUS)
    memory.write(place, b"x" * 3 * PAGE)
    assert memory.madvise(place + PAGE, PAGE - 5, 4) == 0
    assert memory.read(place, 3 * PAGE) == b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
    assert memory.madvise(IMAGE, 2 * PAGE, 4) == 0
    assert memory.read(IMAGE, PAGE) == IMAGE_BYTES[:PAGE]
    for advice in (0, 3, 14, 15):
        assert memory.madvise(place, PAGE, advice) == 0
    refused(errno.EINVAL, memory.madvise, place, PAGE, 102)
    refused(errno.EINVAL, memory.madvise, place + 1, PAGE, 4)
    refused(errno.EINVAL, memory.madvise, place, (1 << 64) - 1, 4)
    refused(errno.ENOMEM, memory.madvise, place + 2 * PAGE, 2 * PAGE, 8)
    assert memory.read(place + 2 * PAGE, 1) == b"\0", "up to the hole it is done"
    assert memory.madvise(place + 1000 * PAGE, 0, 4) == 0


@pytest.mark.parametrize("where", ["heap", "arena"])
@pytest.mark.parametrize("size", [5 * PAGE, LARGE_PAGE, 2 * LARGE_PAGE + PAGE])
def test_what_moves_is_moved_whole(memory: Memory, where: str, size: int) -> None:
    if where == "heap":
        place = memory.brk(0)
        memory.brk(place + size)
    else:
        place = memory.mmap(0, size, 3, ANONYMOUS)
    data = random.Random(2).randbytes(size)
    memory.write(place, data)
    target = ARENA.base + 3 * PAGE
    assert memory.mremap(place, size, size, 3, target) == target
    assert memory.read(target, size) == data
    refused(errno.EFAULT, memory.read, place, 1)
    memory.mmap(place, size, 3, FIXED)
    assert memory.read(place, size) == bytes(size)
    memory.munmap(target, size)
    memory.mmap(target, size, 3, FIXED)
    assert memory.read(target, size) == bytes(size)


def test_moves_leave_no_more_mappings_than_they_may(memory: Memory) -> None:
    before = host_areas(memory)
    place = memory.mmap(0, LARGE_PAGE, 3, ANONYMOUS)
    memory.write(place, b"x" * LARGE_PAGE)
    for number in range(200):
        target = ARENA.base + number % 7 * 2 * LARGE_PAGE + number % 5 * PAGE
        if abs(target - place) < LARGE_PAGE:
            continue
        memory.mremap(place, LARGE_PAGE, LARGE_PAGE, 3, target)
        place = target
        assert memory.read(place + LARGE_PAGE - 1, 1) == b"x"
    assert host_areas(memory) <= before + 40
    memory.munmap(ARENA.base, ARENA.size)
    memory.mmap(ARENA.base, ARENA.size, 3, FIXED)
    assert memory.read(ARENA.base, ARENA.size) == bytes(ARENA.size)
    assert host_areas(memory) <= before + 10


def test_a_host_that_refuses_to_move_memory_has_it_copied(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: int, target: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "mremap")

    place = memory.mmap(0, 2 * LARGE_PAGE, 3, ANONYMOUS)
    memory.write(place + LARGE_PAGE, b"x" * LARGE_PAGE)
    monkeypatch.setattr(mapping, "move", refuse)
    target = memory.mremap(place, 2 * LARGE_PAGE, 2 * LARGE_PAGE, 3, ARENA.base)
    assert memory.read(target, 2 * LARGE_PAGE) == bytes(LARGE_PAGE) + b"x" * LARGE_PAGE


def test_large_areas_ask_for_huge_pages_and_small_ones_do_not(memory: Memory) -> None:
    asked: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "advise_huge", lambda address, size: asked.append((address, size)))
        memory.mmap(0, LARGE_PAGE - PAGE, 3, ANONYMOUS)
        heap = memory.brk(0)
        memory.brk(heap + MIB)
        assert asked == []
        place = memory.mmap(ARENA.base + PAGE, 2 * LARGE_PAGE, 3, FIXED)
        first = memory._backing.host(place + LARGE_PAGE - PAGE, 1)
        assert asked == [(first, LARGE_PAGE)]
        assert first % LARGE_PAGE == 0, "where a huge page can be"
        memory.brk(heap + 5 * MIB)
        memory.brk(heap + 6 * MIB)
        assert len(asked) == 2
        assert asked[1][0] == -(-memory._backing.host(heap, 1) // LARGE_PAGE) * LARGE_PAGE


def host_areas(memory: Memory) -> int:
    """How many mappings of this process are behind a program's memory."""
    found = 0
    for start, size in (
        (memory.low.address, memory.low.region.size),
        (memory._backing.address, memory._backing.arena.size),
    ):
        found += len(maps.areas(start, start + size))
    return found


def test_what_lies_between_the_regions_is_left_alone(memory: Memory) -> None:
    place = memory.mmap(0, PAGE, 3, ANONYMOUS)
    neighbour = mapping.Mapping.anonymous(1 << 20)
    neighbour.view()[:] = b"x" * (1 << 20)
    memory.write(place, b"x")
    heap = memory.brk(0)
    memory.brk(heap + PAGE)
    memory.write(heap, b"x")
    refused(errno.ENOMEM, memory.madvise, heap, place + PAGE - heap, 4)
    assert (memory.read(heap, 1), memory.read(place, 1)) == (b"\0", b"\0")
    memory.munmap(heap, ARENA.end - heap)
    assert memory.areas.spans.at(heap) is memory.areas.spans.at(place) is None
    for address, size in ((heap, 1 << 32), (abi.WINDOW_GPA, PAGE), (LAYOUT.low.end, PAGE)):
        with pytest.raises(OutOfBounds):
            memory._backing.host(address, size)
    assert bytes(neighbour.view()) == b"x" * (1 << 20)
    neighbour.close()


EDGES = sorted(
    {
        max(edge + by, 0) % (1 << 64)
        for edge in (
            *(
                0,
                0x10000,
                abi.CONTROL_GPA,
                LAYOUT.low.base,
                IMAGE,
                LAYOUT.low.end,
                abi.DOORBELL_GPA,
            ),
            *(abi.WINDOW_GPA, LAYOUT.window.end, ARENA.base, LAYOUT.stack.base, ARENA.end),
            *(ARENA.base + LARGE_PAGE, ARENA.base + 3 * LARGE_PAGE, IMAGE + MIB, IMAGE + 2 * MIB),
            *(LAYOUT.tables.root, 1 << 32, 1 << 46, 1 << 47, 1 << 63, 1 << 64, PAGE, LARGE_PAGE),
        )
        for by in (-PAGE, -1, 0, 1, PAGE)
    }
)


@pytest.mark.parametrize("seed", range(2))
def test_no_numbers_do_harm(memory: Memory, seed: int) -> None:
    rng = random.Random(seed)
    neighbours = [mapping.Mapping.anonymous(MIB) for _ in range(3)]
    for neighbour in neighbours:
        neighbour.view()[:] = b"n" * MIB
    memory.areas.limit = 24 * MIB
    done = 0

    def number() -> int:
        return rng.choice(EDGES) if rng.random() < 0.9 else rng.getrandbits(64)

    for serial in range(1500):
        memory.begin(serial)
        a, b, c, d = (number() for _ in range(4))
        flags = rng.choice((0, 1, 3, 0x22, 0x32, 0x100022, 0x62, d))
        calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            (memory.mmap, (a, b, rng.choice((0, 1, 3, 7)), flags)),
            (memory.munmap, (a, b)),
            (memory.mprotect, (a, b, rng.choice((0, 1, 3, 7, c)))),
            (memory.mremap, (a, b, c, rng.choice((0, 1, 3, flags)), d)),
            (memory.brk, (a,)),
            (memory.madvise, (a, b, rng.choice((4, 8, c)))),
            (memory.read, (a, min(b, MIB))),
            (memory.write, (a, b"w" * min(b, MIB))),
            (memory.text, (a, 4096)),
            (memory.words, (a, 1000)),
            (memory.room, (a, b)),
            (memory.view, (a, b)),
        ]
        call, arguments = rng.choice(calls)
        try:
            call(*arguments)
            done += 1
        except SysError:
            pass
        assert memory.areas.charged <= 24 * MIB
    assert done > 150
    for area in memory.areas.spans:
        assert any(r.base <= area.start < area.end <= r.end for r in (LAYOUT.low, ARENA))
        for page in (area.start, area.end - PAGE, (area.start + area.end) // 2 & -PAGE):
            assert memory.tables.prot(page) == (area.prot and area.prot | 1)
    for region in (LAYOUT.low, ARENA):
        for _ in range(300):
            page = region.base + rng.randrange(region.size // PAGE) * PAGE
            found = memory.areas.spans.at(page)
            prot = found.prot if found else 0
            assert memory.tables.prot(page) == (prot and prot | 1)
            if not found:
                assert not any(memory._backing.view(page, PAGE)), "zeros where nothing is mapped"
    for neighbour in neighbours:
        assert bytes(neighbour.view()) == b"n" * MIB
        neighbour.close()


# ---- cut off ----

Steps = list[tuple[str, tuple[int, ...]]]

_A = ARENA.base + LARGE_PAGE
SCRIPT: Steps = [
    ("mmap", (0, 3 * PAGE, 3, ANONYMOUS)),
    ("mmap", (_A, 3 * LARGE_PAGE, 3, FIXED)),
    ("mprotect", (_A + PAGE, 3 * PAGE, 1)),
    ("mprotect", (_A + PAGE, PAGE, 3)),
    ("mremap", (_A + LARGE_PAGE, LARGE_PAGE, LARGE_PAGE, 3, _A + 4 * LARGE_PAGE)),
    ("mremap", (_A, LARGE_PAGE - PAGE, 3 * PAGE, 3, _A + 4 * LARGE_PAGE)),
    ("mremap", (_A + 2 * LARGE_PAGE, LARGE_PAGE, 2 * LARGE_PAGE, 1)),
    ("brk", (IMAGE + MIB + 5 * MIB,)),
    ("brk", (IMAGE + MIB + 3,)),
    ("mmap", (IMAGE, 3 * PAGE, 3, FIXED)),
    ("mmap", (IMAGE + 4 * PAGE, 20 * PAGE, 5, FIXED)),
    ("munmap", (_A + 4 * LARGE_PAGE, PAGE)),
    ("mprotect", (_A + 4 * LARGE_PAGE - PAGE, 9 * PAGE, 1)),
    ("mremap", (_A + 4 * LARGE_PAGE + PAGE, PAGE, PAGE, 3, IMAGE + 5 * PAGE)),
]


def marked(memory: Memory, serial: int) -> None:
    """Write something of its own into each page that can be written to, of some."""
    for area in list(memory.areas.spans):
        for page in itertools.islice(range(area.start, area.end, PAGE), 0, None, 97):
            if area.prot & 2:
                memory.write(page + 8, serial.to_bytes(8, "little"))


def state(memory: Memory) -> object:
    """All that a program could find out, and more."""
    known = []
    for area in memory.areas.spans:
        known.append((area, hash(bytes(memory.raw(area.start, area.end - area.start)))))
        for page in itertools.islice(range(area.start, area.end, PAGE), 0, None, 31):
            assert memory.tables.prot(page) == (area.prot and area.prot | 1)
    return known, memory.areas.brk


def one(memory: Memory, name: str, arguments: tuple[int, ...]) -> int:
    try:
        return int(getattr(memory, name)(*arguments))
    except SysError as error:
        return -error.number


@pytest.mark.parametrize("number", range(len(SCRIPT)), ids=lambda n: f"{n}-{SCRIPT[n][0]}")
def test_a_call_that_is_cut_off_is_done_whole_when_it_is_made_again(number: int) -> None:
    def prepared() -> Memory:
        memory = make()
        for serial, step in enumerate(SCRIPT[:number]):
            memory.begin(serial)
            one(memory, *step)
            marked(memory, serial)
        return memory

    def attempt(memory: Memory) -> list[int]:
        memory.begin(number)
        results = [one(memory, *SCRIPT[number])]
        return [*results, one(memory, "mmap", (0, PAGE, 3, ANONYMOUS))]

    memory = prepared()
    with Tracer(under="linux") as counted:
        wanted = attempt(memory)
    assert (-errno.ENOMEM in wanted) == (number == 12)
    after = state(memory)
    memory.close()
    # All lines of the one that moves memory: what has been moved must not be moved again.
    step = 1 if EVERY or number == 4 else max(counted.lines // 40, 1)
    for line in range(1 + random.randrange(step), counted.lines + 1, step):
        memory = prepared()
        with Tracer(line, under="linux") as cut:
            attempt(memory)
        with Tracer((line * 7) % 50 + 1, under="linux"):
            memory.finish()
        assert attempt(memory) == wanted, cut.where
        assert state(memory) == after, cut.where
        memory.close()


def test_what_was_answered_is_not_done_again_and_the_next_call_is(memory: Memory) -> None:
    memory.begin(1)
    first = memory.mmap(0, PAGE, 3, ANONYMOUS)
    second = memory.mmap(0, PAGE, 3, ANONYMOUS)
    memory.begin(1)
    assert [memory.mmap(0, PAGE, 3, ANONYMOUS) for _ in range(2)] == [first, second]
    assert memory.mmap(0, PAGE, 3, ANONYMOUS) == second - PAGE
    memory.begin(2)
    assert memory.mmap(0, PAGE, 3, ANONYMOUS) == second - 2 * PAGE

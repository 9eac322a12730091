"""A Linux program's map of areas: against pages in a dictionary, and against the real kernel."""

from __future__ import annotations

import errno
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from unit import kernel_areas
from unit.kernel_areas import BASE, END, PAGE, PAGES

from vmm.linux import address_map, plans
from vmm.linux.areas import Areas
from vmm.linux.errors import SysError
from vmm.linux.plans import Drop, Lent, Move, Plan, Rights
from vmm.linux.spans import Area, Spans
from vmm.memory.region import Region

LOW = Region(0x200000, 32 * PAGE)
ARENA = Region(BASE, PAGES * PAGE)
ANONYMOUS = plans.MAP_PRIVATE | plans.MAP_ANONYMOUS
FIXED = ANONYMOUS | plans.MAP_FIXED
NEVER = 1 << 40


def made(limit: int = NEVER, stack: int = 0, arena: Region = ARENA) -> Areas:
    areas = Areas(LOW, arena, limit, stack)
    areas.start_heap(LOW.base)
    return areas


def do(areas: Areas, name: str, *arguments: int) -> int:
    """Make a call; return its result, or -errno."""
    try:
        plans = getattr(areas, "move_brk" if name == "brk" else name)(*arguments)
    except SysError as error:
        return -error.number
    for plan in [plans] if isinstance(plans, Plan) else plans:
        areas.put(plan)
    return plan.result


def pages(spans: Spans) -> dict[int, int]:
    return {at: area.prot for area in spans for at in range(area.start, area.end, PAGE)}


class Pages:
    """The same address space, page by page: what is at an address, and what it may be used for."""

    def __init__(self) -> None:
        self.prot: dict[int, int] = {}
        self.content: dict[int, int] = {}  # a number for each page that has ever been written
        self.held: set[int] = set()  # what may have contents

    def follow(self, plan: Plan) -> None:
        for step in plan.steps:
            if isinstance(step, Move):
                for at in range(0, step.size, PAGE):
                    if step.source + at in self.held:
                        self.held.add(step.target + at)
                    assert step.target + at not in self.content
                    if step.source + at in self.content:
                        self.content[step.target + at] = self.content.pop(step.source + at)
                continue
            for at in range(step.start, step.end, PAGE):
                if isinstance(step, Drop):
                    self.content.pop(at, None)
                    self.prot.pop(at, None)
                    self.held.discard(at)
                elif step.prot:
                    assert step.stale == bool(self.prot.get(at))
                    self.prot[at] = step.prot
                    self.held.add(at)
                else:
                    assert isinstance(step, Rights)
                    self.prot.pop(at, None)


addresses = st.integers(0, PAGES - 1).map(lambda page: BASE + page * PAGE)
small = st.integers(1, 8).map(lambda count: count * PAGE)
wild = st.sampled_from((0, 1, PAGE - 1, PAGE + 1, 2**63, 2**64 - PAGE, 2**64 - 1))
strange = st.one_of(addresses.map(lambda a: a + 1), st.sampled_from((2**63, 2**64 - PAGE)))
prots = st.sampled_from((0, 1, 2, 3, 4, 5, 7))
mostly = st.integers(0, 9)


@st.composite
def call(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    """Draw a call whose range ends in the arena, or where no program's address is."""
    odd = draw(mostly) == 0
    address = draw(strange if odd and draw(st.booleans()) else addresses)
    size = draw(wild if odd else small)
    if BASE <= address < END and size < 2**40:
        size = min(size, END - (address & -PAGE))
    name = draw(st.sampled_from(("mmap", "mmap", "munmap", "mprotect", "mprotect", "mremap")))
    if name == "mmap":
        how = draw(st.sampled_from((0, plans.MAP_FIXED, plans.MAP_FIXED_NOREPLACE)))
        kind = draw(st.sampled_from((2, 2, 2, 2, 2, 0, 4)))
        return name, (address, size, draw(prots), kind | plans.MAP_ANONYMOUS | how)
    if name == "mprotect":
        return name, (address, size, draw(st.one_of(prots, st.sampled_from((16, 8 | 1, 3 << 24)))))
    if name == "munmap":
        return name, (address, size)
    new, new_size = draw(st.one_of(addresses, addresses, strange)), draw(small)
    if BASE <= new < END:
        new_size = min(new_size, END - (new & -PAGE))
    return name, (address, size, new_size, draw(st.sampled_from((0, 1, 1, 3, 3, 3, 2, 8))), new)


@settings(max_examples=150, deadline=None)
@given(st.lists(call(), min_size=1, max_size=25))
def test_plans_lead_to_the_map_that_they_say(calls: list[tuple[str, tuple[int, ...]]]) -> None:
    areas, model = made(), Pages()
    for number, (name, arguments) in enumerate(calls):
        before = areas.spans, areas.hidden, areas.brk
        try:
            plans = getattr(areas, name)(*arguments)
        except SysError:
            assert (areas.spans, areas.hidden, areas.brk) == before
            continue
        plans = [plans] if isinstance(plans, Plan) else plans
        assert (areas.spans, areas.hidden, areas.brk) == before, "a plan changes nothing"
        for plan in plans:
            model.follow(plan)
            areas.put(plan)
            known = pages(areas.spans)
            assert model.prot == {at: prot for at, prot in known.items() if prot}
            assert model.content.keys() <= known.keys(), "nothing is left where nothing is mapped"
            assert areas.charged == PAGE * len(model.held)
            assert pages(areas.hidden).keys() == model.held - model.prot.keys()
        for at in known:
            model.content.setdefault(at, number)
        check(areas.spans)
        check(areas.hidden)


def check(spans: Spans) -> None:
    """Areas are in order, apart or different, and counted."""
    found = list(spans)
    for one, other in itertools.pairwise(found):
        assert one.end <= other.start
        assert one.end < other.start or one.prot != other.prot or one.file or other.file
    assert all(area.start < area.end for area in found)
    assert spans.count == len(found)
    assert spans.charged == sum(a.end - a.start for a in found if a.prot or a.file)


@pytest.fixture(scope="module")
def kernel() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(kernel_areas.__file__))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        yield child
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(10) == 0


@settings(max_examples=300, deadline=None)
@given(calls=st.lists(call(), min_size=1, max_size=25))
def test_the_kernel_answers_the_same_and_maps_the_same(
    kernel: subprocess.Popen[str], calls: list[tuple[str, tuple[int, ...]]]
) -> None:
    areas = made()
    made_calls, expected = [], []
    for name, arguments in calls:
        result = do(areas, name, *arguments)
        if name == "mremap" and result == -errno.EFAULT and arguments[3] == 3:
            continue  # since Linux 6.17 several areas can be moved at once
        made_calls.append((name, arguments, result))
        expected.append(result)
    assert kernel.stdin is not None
    assert kernel.stdout is not None
    kernel.stdin.write(json.dumps(made_calls) + "\n")
    kernel.stdin.flush()
    answers, mapped = json.loads(kernel.stdout.readline())
    for number, (name, arguments, result) in enumerate(made_calls):
        # Which error a range beyond 2**64 is depends on the kernel's version.
        if name == "mremap" and arguments[0] + arguments[1] >= 1 << 64 and answers[number] < 0:
            answers[number] = result
    named = [(name, [hex(a) for a in arguments]) for name, arguments, _ in made_calls]
    assert list(zip(named, answers, strict=True)) == list(zip(named, expected, strict=True))
    assert [tuple(page) for page in mapped] == sorted(pages(areas.spans).items())


def test_a_place_is_the_highest_below_the_stack_and_its_guard() -> None:
    arena = Region(BASE, 8 << 20)
    areas = made(stack=1 << 20, arena=arena)
    first = do(areas, "mmap", 0, PAGE, 3, ANONYMOUS)
    assert first == arena.end - (1 << 20) - address_map.STACK_GAP - PAGE
    assert do(areas, "mmap", 0, 2 * PAGE, 3, ANONYMOUS) == first - 2 * PAGE
    assert do(areas, "munmap", first, PAGE) == 0
    assert do(areas, "mmap", 0, 2 * PAGE, 1, ANONYMOUS) == first - 4 * PAGE
    assert do(areas, "mmap", 0, PAGE, 1, ANONYMOUS) == first


def test_what_is_large_begins_where_huge_pages_do_if_there_is_room() -> None:
    huge = 2 << 20
    arena = Region(BASE, 4 * huge)
    areas = made(arena=arena)
    do(areas, "mmap", 0, PAGE, 3, ANONYMOUS)
    first = do(areas, "mmap", 0, huge + PAGE, 3, ANONYMOUS)
    assert first == arena.end - 2 * huge
    assert do(areas, "mmap", 0, PAGE, 1, ANONYMOUS) == arena.end - 2 * PAGE, "above is room left"
    assert do(areas, "mmap", BASE, huge - PAGE, 3, FIXED) == BASE
    assert do(areas, "mmap", 0, huge + PAGE, 3, ANONYMOUS) == first - huge - PAGE


def test_a_32_bit_place_is_in_the_low_region() -> None:
    place = do(made(), "mmap", 0, PAGE, 3, ANONYMOUS | plans.MAP_32BIT)
    assert place == LOW.end - PAGE


@pytest.mark.parametrize(
    ("address", "flags", "number"),
    [
        (0, FIXED, errno.EPERM),
        (PAGE, FIXED, errno.EPERM),
        (0x10000, FIXED, errno.ENOMEM),
        (LOW.base - PAGE, FIXED, errno.ENOMEM),
        (LOW.end - PAGE, FIXED, errno.ENOMEM),
        (BASE - PAGE, FIXED, errno.ENOMEM),
        (END - PAGE, FIXED, errno.ENOMEM),
        (0x10000, ANONYMOUS | plans.MAP_FIXED_NOREPLACE, errno.EEXIST),
        (END - PAGE, ANONYMOUS | plans.MAP_FIXED_NOREPLACE, errno.EEXIST),
        (0, ANONYMOUS | plans.MAP_HUGETLB, errno.ENOMEM),
    ],
)
def test_what_is_not_the_programs_is_not_to_be_had(address: int, flags: int, number: int) -> None:
    assert do(made(), "mmap", address, 2 * PAGE, 3, flags) == -number


@pytest.mark.parametrize("hint", [0x10000, LOW.end - PAGE, END - PAGE, 1 << 46, 1 << 63])
def test_a_wish_that_cannot_be_is_placed_elsewhere(hint: int) -> None:
    assert do(made(), "mmap", hint, 2 * PAGE, 3, ANONYMOUS) == END - 2 * PAGE


def test_the_heap_grows_and_shrinks_and_stays_where_it_cannot() -> None:
    areas = made()
    start = LOW.base
    assert do(areas, "brk", 0) == start
    assert do(areas, "brk", start + 5) == start + 5
    assert pages(areas.spans) == {start: 3}
    assert do(areas, "brk", start + 3 * PAGE) == start + 3 * PAGE
    assert do(areas, "brk", start - 1) == start + 3 * PAGE
    assert do(areas, "mmap", start + 5 * PAGE, PAGE, 1, FIXED) == start + 5 * PAGE
    assert do(areas, "brk", start + 4 * PAGE) == start + 4 * PAGE
    assert do(areas, "brk", start + 5 * PAGE) == start + 4 * PAGE, "a page beyond it is not free"
    assert do(areas, "brk", LOW.end + 1) == start + 4 * PAGE
    assert do(areas, "brk", start + 1) == start + 1
    assert pages(areas.spans) == {start: 3, start + 5 * PAGE: 1}


def test_the_limit_counts_what_can_be_used() -> None:
    areas = made(limit=4 * PAGE)
    assert do(areas, "mmap", BASE, 20 * PAGE, 0, FIXED) == BASE
    assert do(areas, "mprotect", BASE, 4 * PAGE, 3) == 0
    assert do(areas, "mprotect", BASE + 4 * PAGE, PAGE, 1) == -errno.ENOMEM
    assert do(areas, "mmap", 0, PAGE, 3, ANONYMOUS) == -errno.ENOMEM
    assert do(areas, "brk", LOW.base + 1) == LOW.base
    assert do(areas, "mremap", BASE, PAGE, 2 * PAGE, 1, 0) == -errno.ENOMEM
    assert do(areas, "mmap", BASE, 3 * PAGE, 3, FIXED) == BASE, "it takes their place"
    assert do(areas, "mprotect", BASE, PAGE, 0) == 0
    assert do(areas, "brk", LOW.base + 1) == LOW.base, "what is there is there"
    assert do(areas, "mprotect", BASE, PAGE, 3) == 0
    assert do(areas, "mprotect", BASE, PAGE, 0) == 0
    assert do(areas, "mmap", BASE, PAGE, 0, FIXED) == BASE
    assert do(areas, "brk", LOW.base + 1) == LOW.base + 1


def test_a_file_costs_what_it_shows_whatever_its_rights() -> None:
    areas = made(limit=4 * PAGE)
    assert do(areas, "mmap", BASE, 3 * PAGE, 0, plans.MAP_PRIVATE | plans.MAP_FIXED) == BASE
    assert areas.charged == 3 * PAGE
    assert do(areas, "mprotect", BASE, PAGE, 3) == do(areas, "mprotect", BASE, PAGE, 0) == 0
    assert areas.charged == 3 * PAGE
    assert do(areas, "mmap", 0, 2 * PAGE, 0, plans.MAP_PRIVATE) == -errno.ENOMEM


def test_what_is_hidden_is_counted_too() -> None:
    arena = Region(BASE, 2 * (address_map.MOST_AREAS + 8) * PAGE)
    areas = made(arena=arena)
    do(areas, "mmap", BASE, arena.size, 0, FIXED)
    wanted = [Area(BASE + 2 * n * PAGE, BASE + (2 * n + 1) * PAGE, 1) for n in range(65527)]
    areas.hidden = Spans().replaced(BASE, arena.end, wanted)
    assert do(areas, "mprotect", arena.end - PAGE, PAGE, 3) == 0
    assert do(areas, "mprotect", arena.end - PAGE, PAGE, 0) == 0
    assert do(areas, "mprotect", arena.end - 3 * PAGE, PAGE, 3) == -errno.ENOMEM


def test_there_are_no_more_areas_than_linux_allows() -> None:
    arena = Region(BASE, 2 * (address_map.MOST_AREAS + 8) * PAGE)
    areas = made(arena=arena)
    spans = Spans()
    wanted = [Area(BASE + 2 * n * PAGE, BASE + (2 * n + 1) * PAGE, 1) for n in range(65530)]
    areas.spans = spans.replaced(BASE, arena.end, wanted)
    check(areas.spans)
    above = arena.end - PAGE
    assert do(areas, "mmap", above, PAGE, 3, FIXED) == -errno.ENOMEM
    assert do(areas, "mprotect", BASE + PAGE, PAGE, 3) == -errno.ENOMEM, "nothing is there"
    assert do(areas, "mmap", BASE + PAGE, PAGE, 1, FIXED) == BASE + PAGE, "two are joined"
    assert areas.spans.count == address_map.MOST_AREAS - 1
    assert do(areas, "mmap", above, PAGE, 3, FIXED) == above
    assert do(areas, "mprotect", BASE, PAGE, 3) == -errno.ENOMEM, "one would be split"
    assert do(areas, "munmap", BASE, 3 * PAGE) == 0


def test_the_highest_gap_is_found_among_many_areas() -> None:
    rng = random.Random(5)
    taken = sorted(rng.sample(range(4000), 1500))
    spans = Spans()
    for page in rng.sample(taken, len(taken)):
        start = page * PAGE
        spans = spans.replaced(start, start + PAGE, [Area(start, start + PAGE, rng.choice((1, 3)))])
    check(spans)
    for page in rng.sample(taken, 700):
        spans = spans.replaced(page * PAGE, (page + 1) * PAGE, ())
    check(spans)
    used = {at // PAGE for at in pages(spans)}
    for _ in range(200):
        low, top, count = rng.randrange(3000), rng.randrange(1000, 4100), rng.randrange(1, 14)
        fits = [p for p in range(low, top - count + 1) if used.isdisjoint(range(p, p + count))]
        wanted = max(fits) * PAGE if fits else None
        assert spans.highest_gap(low * PAGE, top * PAGE, count * PAGE) == wanted


def test_only_the_stack_grows_down() -> None:
    areas = made(stack=4 * PAGE)
    downwards = plans.PROT_GROWSDOWN
    assert do(areas, "mprotect", END - PAGE, PAGE, 7 | downwards) == 0
    assert pages(areas.spans) == {END - n * PAGE: 7 for n in range(1, 5)}
    areas = made()
    do(areas, "mmap", BASE, PAGE, 3, FIXED)
    assert do(areas, "mprotect", BASE, PAGE, 7 | downwards) == -errno.EINVAL


def test_what_is_unmapped_in_both_regions_is_dropped_in_each() -> None:
    areas = made()
    do(areas, "mmap", LOW.base + PAGE, PAGE, 3, FIXED)
    do(areas, "mmap", BASE + 2 * PAGE, PAGE, 3, FIXED)
    low, arena = Drop(LOW.base + PAGE, LOW.base + 2 * PAGE), Drop(BASE + 2 * PAGE, BASE + 3 * PAGE)
    plan = areas.munmap(0, 1 << 46)
    assert (plan.steps, plan.spans.count) == ((low, arena), 0)
    size = BASE - LOW.base
    assert areas.mremap(LOW.base + PAGE, size + 8 * PAGE, PAGE, 0, 0)[0].steps == (arena,)
    assert areas.munmap(LOW.end, BASE + 2 * PAGE - LOW.end).steps == ()


def test_areas_of_files_are_never_joined() -> None:
    areas = made()
    for at in (BASE, BASE + PAGE):
        do(areas, "mmap", at, PAGE, 1, plans.MAP_PRIVATE | plans.MAP_FIXED)
    assert areas.spans.count == 2
    do(areas, "mprotect", BASE, 2 * PAGE, 3)
    assert [area.file for area in areas.spans] == [True, True]


# ---- Pages of the window ----

GPA = 1 << 30


def lent(write: bool, kind: int, size: int = 3 * PAGE - 5) -> tuple[Areas, int]:
    areas = made(limit=2 * PAGE if size else NEVER)
    plan = areas.mmap(0, 4 * PAGE, 1, kind, Lent(GPA, size, write))
    areas.put(plan)
    return areas, plan.result


def test_pages_that_are_lent_are_mapped_as_far_as_they_go_and_cost_nothing() -> None:
    areas, start = lent(write=False, kind=plans.MAP_SHARED)
    first, rest = areas.spans
    assert first == Area(start, start + 3 * PAGE, 1, True, GPA - start, False)
    assert rest == Area(start + 3 * PAGE, start + 4 * PAGE, 1, True)
    assert areas.charged == PAGE
    plan = areas.munmap(start, 4 * PAGE)
    assert plan.steps == (Drop(start, start + 4 * PAGE),)
    areas, start = lent(write=False, kind=plans.MAP_SHARED, size=0)
    assert list(areas.spans) == [Area(start, start + 4 * PAGE, 1, True)]


@pytest.mark.parametrize(
    ("write", "kind", "result"),
    [
        (False, plans.MAP_SHARED, -errno.EACCES),
        (True, plans.MAP_SHARED, 0),
        (False, plans.MAP_PRIVATE, 0),
        (True, plans.MAP_PRIVATE, 0),
    ],
)
def test_they_are_written_if_they_may_be_and_what_is_private_first_gets_memory(
    write: bool, kind: int, result: int
) -> None:
    areas, start = lent(write, kind)
    private, before = kind == plans.MAP_PRIVATE, areas.spans
    assert [area.start for area in areas.borrowed(start, start + 4 * PAGE)] == [start] * private
    assert do(areas, "mprotect", start + PAGE, PAGE, 3) == result
    if result:
        assert areas.spans is before
        return
    middle = areas.spans.at(start + PAGE)
    assert middle is not None
    assert (middle.prot, middle.delta) == (3, 0 if private else GPA - start)
    assert areas.charged == PAGE + private * PAGE
    if private:
        ends = [area.start for area in areas.borrowed(start, start + 4 * PAGE)]
        assert ends == [start, start + 2 * PAGE]
        assert do(areas, "mprotect", start, 3 * PAGE, 3) == -errno.ENOMEM, "beyond the limit"


def test_they_do_not_move() -> None:
    areas, start = lent(write=True, kind=plans.MAP_SHARED)
    maymove = plans.MREMAP_MAYMOVE
    assert do(areas, "mremap", start, 3 * PAGE, 4 * PAGE, maymove, 0) == -errno.ENOMEM
    fixed = maymove | plans.MREMAP_FIXED
    assert do(areas, "mremap", start, PAGE, PAGE, fixed, start + 8 * PAGE) == -errno.ENOMEM
    assert do(areas, "mremap", start, 3 * PAGE, PAGE, 0, 0) == start
    assert areas.spans.at(start + PAGE) is None


@given(st.integers())
@settings(max_examples=100, deadline=None)
def test_an_address_space_goes_back_to_what_it_was(seed: int) -> None:
    chance, areas = random.Random(seed), made()

    def change(count: int) -> None:
        for _ in range(count):
            start, size = (chance.randrange(n) * PAGE for n in (PAGES, PAGES // 2))
            prot = chance.randrange(8)
            calls = (
                ("mmap", BASE + start, size, prot, chance.choice((ANONYMOUS, FIXED))),
                ("munmap", BASE + start, size),
                ("mprotect", BASE + start, size, prot),
                ("brk", LOW.base + start % LOW.size),
                ("mremap", BASE + start, size, 2 * size, plans.MREMAP_MAYMOVE, 0),
            )
            do(areas, *chance.choice(calls))

    change(10)
    kept, wanted = areas.map, pages(areas.spans)
    change(10)
    there, known = pages(areas.spans), Pages()
    known.prot = dict(there)
    plan = areas.back_to(kept)
    known.follow(plan)
    areas.put(plan)
    assert areas.map == kept
    with_rights = {at: prot for at, prot in wanted.items() if prot}
    assert {at: prot for at, prot in known.prot.items() if prot} == with_rights
    for step in plan.steps:
        if isinstance(step, Rights):
            stale = any(there.get(at) for at in range(step.start, step.end, PAGE))
            assert step.stale is stale
    assert areas.back_to(kept).steps == ()

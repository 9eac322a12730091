"""Region: the one place where bounds are checked."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vmm.guest.abi import PAGE_SIZE
from vmm.memory.region import OutOfBounds, Region

U64 = st.integers(0, (1 << 64) - 1)
REGION = Region(0x10000, 4 * PAGE_SIZE)


@settings(max_examples=300, deadline=None)
@given(U64, U64, U64, st.integers(-1, (1 << 64) - 1))
@example(0, 0, 0, 0)
@example((1 << 64) - PAGE_SIZE, PAGE_SIZE, (1 << 64) - 1, 2)  # would wrap in 64 bits
def test_a_range_is_inside_if_and_only_if_all_of_its_bytes_are(
    base: int, size: int, gpa: int, length: int
) -> None:
    region = Region(base, size)
    if length >= 0 and base <= gpa and gpa + length <= base + size:
        assert region.offset(gpa, length) == gpa - base
    else:
        with pytest.raises(OutOfBounds):
            region.offset(gpa, length)


def test_both_ends_belong_exactly() -> None:
    assert REGION.offset(REGION.base, REGION.size) == 0
    assert REGION.offset(REGION.end - 1, 1) == REGION.size - 1
    for gpa, length in ((REGION.base - 1, 1), (REGION.end - 1, 2), (REGION.end, 1)):
        with pytest.raises(OutOfBounds):
            REGION.offset(gpa, length)


def test_nothing_is_inside_up_to_the_end_and_not_beyond() -> None:
    assert REGION.offset(REGION.end, 0) == REGION.size
    for gpa in (REGION.end + 1, REGION.base - 1):
        with pytest.raises(OutOfBounds):
            REGION.offset(gpa, 0)


def test_pages_are_counted_from_the_base() -> None:
    assert REGION.pages == 4
    assert REGION.page(REGION.base, 4) == 0
    assert REGION.page(REGION.base + 3 * PAGE_SIZE, 1) == 3
    for index, pages in ((0, 5), (3, 2), (4, 1), (-1, 1)):
        with pytest.raises(OutOfBounds):
            REGION.page(REGION.base + index * PAGE_SIZE, pages)


@pytest.mark.parametrize("pages", [0, -1])
def test_no_pages_are_out_of_bounds(pages: int) -> None:
    with pytest.raises(OutOfBounds):
        REGION.page(REGION.base, pages)


def test_the_error_names_the_range_and_the_region() -> None:
    with pytest.raises(OutOfBounds, match=r"8 bytes at 0x13ffc are not within 0x10000\.\.0x14000"):
        REGION.offset(0x13FFC, 8)

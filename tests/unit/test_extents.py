"""Extents: where they may lie, and how many, of any operation's."""

from __future__ import annotations

import pytest

from vmm.ferry.message import Request, Span
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import Region
from vmm.memory.runs import Extent

BASE = abi.WINDOW_GPA
PAGES = 16
WINDOW = Region(BASE, PAGES * PAGE_SIZE)
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
SERVED = sorted(set(Operation) - {Operation.UNDELIVERED})


def page(index: int) -> int:
    return BASE + index * PAGE_SIZE


def extents_refusal(*spans: Span, length: int = 0, window: Region = WINDOW) -> Status:
    with pytest.raises(Refusal) as caught:
        Request(receiver=1, spans=spans, length=length).extents(window)
    return caught.value.status


# ---- Where ----


def test_extents_come_in_the_order_of_the_message() -> None:
    request = Request(1, spans=(Span(page(5), 2), Span(page(0), 1)))
    assert request.extents(WINDOW) == [Extent(5, 2), Extent(0, 1)]


def test_an_extent_may_fill_the_window_to_either_end() -> None:
    for span, extent in (
        (Span(page(0), PAGES), Extent(0, PAGES)),
        (Span(page(PAGES - 1), 1), Extent(PAGES - 1, 1)),
    ):
        assert Request(1, spans=(span,)).extents(WINDOW) == [extent]


@pytest.mark.parametrize(
    "span",
    [
        pytest.param(Span(page(0), PAGES + 1), id="a page too many"),
        pytest.param(Span(page(1), PAGES), id="a page too high"),
        pytest.param(Span(page(-1), 1), id="the page before"),
        pytest.param(Span(page(-1), 2), id="from the page before"),
        pytest.param(Span(page(PAGES), 1), id="the page after"),
        pytest.param(Span(0, 1), id="address zero"),
        pytest.param(Span(page(0), 0), id="no pages"),
        pytest.param(Span(page(0), U32), id="the most pages a field holds"),
        pytest.param(Span(U64 - PAGE_SIZE + 1, 1), id="ends at 2^64"),
        pytest.param(Span(U64 - PAGE_SIZE + 1, 2), id="wraps around 2^64"),
    ],
)
def test_an_extent_outside_the_window_is_refused(span: Span) -> None:
    assert extents_refusal(span) is Status.E_RANGE


def test_an_end_beyond_2_to_the_64_does_not_wrap_into_a_window_at_the_top() -> None:
    top = Region((1 << 64) - 4 * PAGE_SIZE, 4 * PAGE_SIZE)
    assert Request(1, spans=(Span(top.base, 4),)).extents(top) == [Extent(0, 4)]
    assert extents_refusal(Span(top.base, 5), window=top) is Status.E_RANGE
    assert extents_refusal(Span(top.base, U32), window=top) is Status.E_RANGE


@pytest.mark.parametrize("offset", [1, 8, 512, PAGE_SIZE - 1])
def test_an_address_within_a_page_is_refused(offset: int) -> None:
    assert extents_refusal(Span(page(0) + offset, 1)) is Status.E_ALIGNMENT


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param((Span(page(2), 3), Span(page(2), 3)), id="the same"),
        pytest.param((Span(page(2), 3), Span(page(4), 1)), id="the last page"),
        pytest.param((Span(page(4), 3), Span(page(2), 3)), id="the first page"),
        pytest.param((Span(page(0), 9), Span(page(3), 1)), id="inside"),
        pytest.param((Span(page(0), 1), Span(page(8), 1), Span(page(0), 1)), id="not neighbours"),
    ],
)
def test_extents_that_overlap_are_refused(spans: tuple[Span, ...]) -> None:
    assert extents_refusal(*spans) is Status.E_OVERLAP


def test_extents_may_be_adjacent() -> None:
    request = Request(1, spans=(Span(page(3), 2), Span(page(1), 2)), length=4 * PAGE_SIZE)
    assert request.extents(WINDOW) == [Extent(3, 2), Extent(1, 2)]


@pytest.mark.parametrize("spans", [(), (Span(page(0), 1),), (Span(page(0), 1), Span(page(4), 2))])
def test_a_length_may_fill_the_extents_and_not_pass_them(spans: tuple[Span, ...]) -> None:
    most = sum(span.pages for span in spans) * PAGE_SIZE
    assert len(Request(1, spans=spans, length=most).extents(WINDOW)) == len(spans)
    for over in (most + 1, U64):
        assert extents_refusal(*spans, length=over) is Status.E_LENGTH


def test_a_request_of_the_hosts_has_the_same_limits_as_a_guests() -> None:
    apart = tuple(Span(page(index), 1) for index in range(0, 2 * abi.EXTENTS_MAX + 2, 2))
    window = Region(BASE, 64 * PAGE_SIZE)
    most = Request(1, spans=apart[: abi.EXTENTS_MAX], payload=bytes(abi.PAYLOAD_MAX))
    assert len(most.extents(window)) == abi.EXTENTS_MAX
    for over in (Request(1, spans=apart), Request(1, payload=bytes(abi.PAYLOAD_MAX + 1))):
        with pytest.raises(Refusal) as caught:
            over.extents(window)
        assert caught.value.status is Status.E_LENGTH


# ---- How many ----


def counted(operation: Operation, count: int) -> Status:
    """How an operation with as many extents that are apart is refused for its shape, or OK."""
    spans = tuple(Span(page(2 * index), 1) for index in range(count))
    request = Request(1, spans=spans, operation=operation)
    try:
        request.extents(Region(BASE, 64 * PAGE_SIZE))
    except Refusal as refusal:
        return refusal.status
    return Status.OK


@pytest.mark.parametrize("operation", SERVED)
def test_an_operation_has_as_many_extents_as_make_sense(operation: Operation) -> None:
    least = 0 if operation in (Operation.SEND, Operation.QUERY) else 1
    most = 1 if operation is Operation.QUERY else abi.EXTENTS_MAX
    for count in (0, 1, 2, abi.EXTENTS_MAX, abi.EXTENTS_MAX + 1):
        expected = Status.OK if least <= count <= most else Status.E_LENGTH
        assert counted(operation, count) is expected


# ---- What an ALLOC asks for ----


def alloc_refusal(*spans: Span, **fields: bytes) -> Status:
    with pytest.raises(Refusal) as caught:
        Request(spans=spans, operation=Operation.ALLOC, **fields).counts()  # type: ignore[arg-type]
    return caught.value.status


def test_an_alloc_asks_for_numbers_of_pages() -> None:
    spans = (Span(0, 3), Span(0, U32))
    assert Request(spans=spans, operation=Operation.ALLOC).counts() == [3, U32]


def test_an_alloc_names_no_place() -> None:
    for gpa in (1, page(0), U64):
        assert alloc_refusal(Span(0, 1), Span(gpa, 1)) is Status.E_RESERVED


def test_an_alloc_of_nothing_is_refused() -> None:
    assert alloc_refusal(Span(0, 1), Span(0, 0)) is Status.E_RANGE
    assert alloc_refusal() is Status.E_LENGTH
    assert alloc_refusal(*[Span(0, 1)] * (abi.EXTENTS_MAX + 1)) is Status.E_LENGTH
    assert alloc_refusal(Span(0, 1), payload=bytes(abi.PAYLOAD_MAX + 1)) is Status.E_LENGTH

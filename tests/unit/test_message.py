"""Requests out of untrusted descriptors, and messages as the receiver reads them."""

from __future__ import annotations

import ctypes

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vmm.ferry.rules import Refusal
from vmm.ferry.message import Message, Request, Span
from vmm.ferry.runs import Extent
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import Region

BASE = abi.WINDOW_GPA
PAGES = 16
WINDOW = Region(BASE, PAGES * PAGE_SIZE)
UNSERVED = sorted(set(Operation) - {Operation.SEND, Operation.RELEASE})
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def descriptor(spans: tuple[Span, ...] = (), **fields: int) -> abi.Descriptor:
    result = abi.Descriptor(operation=Operation.SEND, extent_count=len(spans))
    for extent, span in zip(result.extents, spans, strict=False):
        extent.gpa, extent.pages = span
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def refusal_of(raw: abi.Descriptor) -> Status:
    with pytest.raises(Refusal) as caught:
        Request.from_descriptor(raw)
    return caught.value.status


def extents_refusal(*spans: Span, length: int = 0, window: Region = WINDOW) -> Status:
    with pytest.raises(Refusal) as caught:
        Request(receiver=1, spans=spans, length=length).extents(window)
    return caught.value.status


def page(index: int) -> int:
    return BASE + index * PAGE_SIZE


# ---- Descriptors ----


def test_a_descriptor_is_read_field_by_field() -> None:
    spans = (Span(page(1), 2), Span(page(9), 1))
    raw = descriptor(spans, receiver=7, tag=U64, length=9000, payload_length=3)
    raw.payload[:5] = b"abcde"
    assert Request.from_descriptor(raw) == Request(7, U64, 9000, spans, b"abc")


def test_what_a_guest_writes_of_its_own_identity_is_ignored() -> None:
    honest = Request.from_descriptor(descriptor(receiver=2))
    raw = descriptor(receiver=2, sender=99, message=12345, status=Status.PENDING)
    assert Request.from_descriptor(raw) == honest


@pytest.mark.parametrize("operation", [0, *UNSERVED, 10, 0xFFFF])
def test_an_operation_that_is_not_served_is_refused(operation: int) -> None:
    assert refusal_of(descriptor(operation=operation)) is Status.E_OPERATION


@pytest.mark.parametrize(
    ("field", "limit"), [("extent_count", abi.EXTENTS_MAX), ("payload_length", abi.PAYLOAD_MAX)]
)
def test_a_count_may_reach_its_limit_and_not_pass_it(field: str, limit: int) -> None:
    request = Request.from_descriptor(descriptor(**{field: limit}))
    assert limit in (len(request.spans), len(request.payload))
    for over in (limit + 1, 0xFFFF):
        assert refusal_of(descriptor(**{field: over})) is Status.E_LENGTH


@pytest.mark.parametrize("bit", [0, 15])
def test_a_flag_is_refused(bit: int) -> None:
    assert refusal_of(descriptor(flags=1 << bit)) is Status.E_RESERVED


@pytest.mark.parametrize("bit", [0, 31])
def test_a_bit_in_a_reserved_field_is_refused(bit: int) -> None:
    assert refusal_of(descriptor(reserved0=1 << bit)) is Status.E_RESERVED
    for index, shift in ((0, bit), (1, bit + 32)):
        raw = descriptor()
        raw.reserved1[index] = 1 << shift
        assert refusal_of(raw) is Status.E_RESERVED


@pytest.mark.parametrize("index", [0, abi.EXTENTS_MAX - 1])
def test_an_extents_attributes_are_reserved_where_the_extent_is_used(index: int) -> None:
    raw = descriptor()
    raw.extents[index].attributes = 1
    raw.extent_count = index
    assert len(Request.from_descriptor(raw).spans) == index
    raw.extent_count = index + 1
    assert refusal_of(raw) is Status.E_RESERVED


@settings(max_examples=500, deadline=None)
@given(st.binary(min_size=512, max_size=512), st.booleans())
@example(b"\xff" * 512, True)
@example(bytes(512), True)
def test_any_512_bytes_are_a_request_or_a_refusal(data: bytes, plausible: bool) -> None:
    raw = abi.Descriptor.from_buffer_copy(data)
    if plausible:  # past the first checks, so that the extents are looked at as well
        raw.operation, raw.flags, raw.reserved0, raw.reserved1[:] = Operation.SEND, 0, 0, [0, 0]
        raw.extent_count %= abi.EXTENTS_MAX + 1
        raw.payload_length %= abi.PAYLOAD_MAX + 1
        for extent in raw.extents:
            extent.attributes = 0
            extent.gpa = page(extent.gpa % (PAGES + 1)) + extent.gpa % 2
            extent.pages %= 3
    try:
        request = Request.from_descriptor(raw)
        extents = request.extents(WINDOW)
    except Refusal as refusal:
        assert refusal.status < 0
        return
    claimed = [index for extent in extents for index in range(extent.page, extent.end)]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(range(PAGES))
    assert request.length <= len(claimed) * PAGE_SIZE


def test_a_release_is_read_like_a_send() -> None:
    raw = descriptor((Span(page(1), 2),), operation=Operation.RELEASE)
    request = Request.from_descriptor(raw)
    assert request.operation is Operation.RELEASE
    assert request.extents(WINDOW) == [Extent(1, 2)]


# ---- Registers ----


def attributes(operation: int, receiver: int = 0, tag: int = 0) -> int:
    return tag << 32 | receiver << 16 | operation << 8 | abi.Bell.DIRECT


def test_a_direct_hypercall_is_a_request_on_one_extent_with_all_of_its_bytes() -> None:
    most = attributes(Operation.SEND, abi.DIRECT_PEER_MAX, abi.DIRECT_TAG_MAX)
    assert Request.from_registers(page(2), 3, most) == Request(
        abi.DIRECT_PEER_MAX, abi.DIRECT_TAG_MAX, 3 * PAGE_SIZE, (Span(page(2), 3),)
    )
    release = Request.from_registers(page(2), 3, attributes(Operation.RELEASE))
    assert release.operation is Operation.RELEASE
    assert release.extents(WINDOW) == [Extent(2, 3)]


@pytest.mark.parametrize("operation", [0, *UNSERVED, 10, 0xFF])
def test_a_direct_operation_that_is_not_served_is_refused(operation: int) -> None:
    with pytest.raises(Refusal) as caught:
        Request.from_registers(page(0), 1, attributes(operation))
    assert caught.value.status is Status.E_OPERATION


@settings(max_examples=200, deadline=None)
@given(st.integers(0, U64), st.integers(0, U64), st.integers(0, U64))
@example(page(0), PAGES, attributes(Operation.SEND))
@example(page(0), 1 << 52, attributes(Operation.SEND))  # a length that would wrap to nothing
def test_any_registers_are_a_request_or_a_refusal(gpa: int, pages: int, word: int) -> None:
    try:
        request = Request.from_registers(gpa, pages, word)
        (extent,) = request.extents(WINDOW)
    except Refusal:
        return
    assert 0 <= extent.page < extent.end <= PAGES
    assert request.length == extent.pages * PAGE_SIZE


# ---- Extents ----


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


# ---- Messages ----

u64 = st.integers(0, U64)
spans = st.lists(st.builds(Span, u64, st.integers(0, U32)), max_size=abi.EXTENTS_MAX).map(tuple)


@settings(max_examples=100, deadline=None)
@given(u64, u64, u64, st.integers(0, U32), spans, st.binary(max_size=abi.PAYLOAD_MAX))
def test_a_message_reaches_the_receiver_as_it_was_sent(
    number: int, tag: int, length: int, receiver: int, where: tuple[Span, ...], payload: bytes
) -> None:
    message = Message(
        number, Operation.SEND, Status.OK, 3, receiver, tag, length, payload, None, where
    )
    written = bytes(message.descriptor())
    assert len(written) == ctypes.sizeof(abi.Descriptor)
    read = abi.Descriptor.from_buffer_copy(written)
    assert (read.message, read.sender, read.status) == (number, 3, Status.OK)
    assert Request.from_descriptor(read) == Request(receiver, tag, length, where, payload)


def test_a_message_that_came_back_says_so_and_why() -> None:
    message = Message(
        5, Operation.UNDELIVERED, Status.E_DEAD, 1, 2, 9, 0, b"ask", None, (Span(page(0), 1),)
    )
    read = message.descriptor()
    assert (read.operation, read.status) == (Operation.UNDELIVERED, Status.E_DEAD)
    assert (read.sender, read.receiver, read.tag) == (1, 2, 9)

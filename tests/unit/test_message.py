"""Requests out of untrusted descriptors, and messages as the receiver reads them."""

from __future__ import annotations

import ctypes

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from unit.descriptors import request_of, written

from vmm.ferry.message import Message, Request, Span
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status
from vmm.memory.region import Region

BASE = abi.WINDOW_GPA
PAGES = 16
WINDOW = Region(BASE, PAGES * PAGE_SIZE)
SERVED = sorted(set(Operation) - {Operation.UNDELIVERED})
LOANS = (Operation.LEND, Operation.SHARE)
READONLY = abi.Flags.READONLY
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
        request_of(raw)
    return caught.value.status


def page(index: int) -> int:
    return BASE + index * PAGE_SIZE


# ---- Descriptors ----


def test_a_descriptor_is_read_field_by_field() -> None:
    spans = (Span(page(1), 2), Span(page(9), 1))
    raw = descriptor(spans, receiver=7, tag=U64, length=9000, payload_length=3)
    raw.payload[:5] = b"abcde"
    assert request_of(raw) == Request(7, U64, 9000, spans, b"abc")


def test_what_a_guest_writes_of_its_own_identity_is_ignored() -> None:
    honest = request_of(descriptor(receiver=2))
    raw = descriptor(receiver=2, sender=99, message=12345, status=Status.PENDING)
    assert request_of(raw) == honest


@pytest.mark.parametrize("operation", [0, 10, Operation.UNDELIVERED, 0xFFFF])
def test_an_operation_that_is_not_served_is_refused(operation: int) -> None:
    assert refusal_of(descriptor(operation=operation)) is Status.E_OPERATION


@pytest.mark.parametrize("operation", SERVED)
def test_an_operation_is_what_the_descriptor_says(operation: Operation) -> None:
    spans = (Span(page(1), 2),)
    request = request_of(descriptor(spans, operation=operation, receiver=7, tag=3))
    assert request == Request(7, 3, 0, spans, b"", operation)
    to_a_peer = {Operation.SEND, *LOANS, Operation.EXCHANGE, Operation.RETURN}
    assert request.has_receiver == (operation in to_a_peer)


@pytest.mark.parametrize("operation", SERVED)
@pytest.mark.parametrize(
    ("field", "limit"), [("extent_count", abi.EXTENTS_MAX), ("payload_length", abi.PAYLOAD_MAX)]
)
def test_a_count_may_reach_its_limit_and_not_pass_it(
    operation: Operation, field: str, limit: int
) -> None:
    request = request_of(descriptor(operation=operation, **{field: limit}))
    assert limit in (len(request.spans), len(request.payload))
    for over in (limit + 1, 0xFFFF):
        raw = descriptor(operation=operation, **{field: over})
        assert refusal_of(raw) is Status.E_LENGTH


@pytest.mark.parametrize("operation", SERVED)
def test_a_flag_is_refused_but_for_a_loan_that_is_read_only(operation: Operation) -> None:
    for bit in range(1, 16):
        for flags in (1 << bit, 1 << bit | READONLY):
            assert refusal_of(descriptor(operation=operation, flags=flags)) is Status.E_RESERVED
    raw = descriptor(operation=operation, flags=READONLY)
    if operation in LOANS:
        assert not request_of(raw).writable
    else:
        assert refusal_of(raw) is Status.E_RESERVED


@pytest.mark.parametrize("operation", SERVED)
@pytest.mark.parametrize("bit", [0, 31])
def test_a_bit_in_a_reserved_field_is_refused(operation: Operation, bit: int) -> None:
    assert refusal_of(descriptor(operation=operation, reserved0=1 << bit)) is Status.E_RESERVED
    for index, shift in ((0, bit), (1, bit + 32)):
        raw = descriptor(operation=operation)
        raw.reserved1[index] = 1 << shift
        assert refusal_of(raw) is Status.E_RESERVED


@pytest.mark.parametrize("index", [0, abi.EXTENTS_MAX - 1])
def test_an_extents_attributes_are_reserved_where_the_extent_is_used(index: int) -> None:
    raw = descriptor()
    raw.extents[index].attributes = 1
    raw.extent_count = index
    assert len(request_of(raw).spans) == index
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
        request = request_of(raw)
        extents = request.extents(WINDOW)
    except Refusal as refusal:
        assert refusal.status < 0
        return
    claimed = [index for extent in extents for index in range(extent.page, extent.end)]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(range(PAGES))
    assert request.length <= len(claimed) * PAGE_SIZE


# ---- Registers ----


DIRECT = sorted(set(SERVED) - {Operation.ALLOC, Operation.QUERY})


def attributes(operation: int, receiver: int = 0, tag: int = 0) -> int:
    return tag << 32 | receiver << 16 | operation << 8 | abi.Bell.DIRECT


def direct_refusal(word: int) -> Status:
    with pytest.raises(Refusal) as caught:
        Request.from_registers(page(0), 1, word)
    return caught.value.status


@pytest.mark.parametrize("operation", DIRECT)
def test_a_direct_hypercall_is_a_request_on_one_extent_with_all_of_its_bytes(
    operation: Operation,
) -> None:
    most = attributes(operation, abi.DIRECT_PEER_MAX, abi.DIRECT_TAG_MAX)
    assert Request.from_registers(page(2), 3, most) == Request(
        abi.DIRECT_PEER_MAX,
        abi.DIRECT_TAG_MAX,
        3 * PAGE_SIZE,
        (Span(page(2), 3),),
        operation=operation,
    )


@pytest.mark.parametrize("operation", [0, Operation.ALLOC, Operation.QUERY, 10, 0x3F])
@pytest.mark.parametrize("bits", [0, abi.DIRECT_READONLY, 1 << 15])
def test_a_direct_operation_that_is_unknown_or_has_an_answer_is_refused(
    operation: int, bits: int
) -> None:
    assert direct_refusal(attributes(operation) | bits) is Status.E_OPERATION


@pytest.mark.parametrize("operation", DIRECT)
def test_a_direct_loan_alone_may_be_read_only(operation: Operation) -> None:
    word = attributes(operation, 2, 3) | abi.DIRECT_READONLY
    if operation in LOANS:
        request = Request.from_registers(page(0), 1, word)
        assert (request.operation, request.writable) == (operation, False)
    else:
        assert direct_refusal(word) is Status.E_RESERVED


@pytest.mark.parametrize("operation", DIRECT)
def test_the_reserved_bit_of_a_direct_hypercall_is_refused(operation: Operation) -> None:
    assert direct_refusal(attributes(operation, 2, 3) | 1 << 15) is Status.E_RESERVED


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


# ---- Messages ----

u64 = st.integers(0, U64)
spans = st.lists(st.builds(Span, u64, st.integers(0, U32)), max_size=abi.EXTENTS_MAX).map(tuple)


def as_read(message: Message) -> abi.Descriptor:
    """What a receiver finds in its ring."""
    found = written(message)
    assert len(found) == ctypes.sizeof(abi.Descriptor)
    return abi.Descriptor.from_buffer_copy(found)


@settings(max_examples=100, deadline=None)
@given(u64, u64, u64, st.integers(0, U32), spans, st.binary(max_size=abi.PAYLOAD_MAX))
def test_a_message_reaches_the_receiver_as_it_was_sent(
    number: int, tag: int, length: int, receiver: int, where: tuple[Span, ...], payload: bytes
) -> None:
    message = Message(number, Operation.SEND, Status.OK, 3, receiver, tag, length, payload, where)
    read = as_read(message)
    assert (read.message, read.sender, read.status) == (number, 3, Status.OK)
    assert request_of(read) == Request(receiver, tag, length, where, payload)


def test_a_message_that_came_back_says_so_and_why() -> None:
    message = Message(
        5, Operation.UNDELIVERED, Status.E_DEAD, 1, 2, 9, 0, b"ask", (Span(page(0), 1),)
    )
    read = as_read(message)
    assert (read.operation, read.status) == (Operation.UNDELIVERED, Status.E_DEAD)
    assert (read.sender, read.receiver, read.tag) == (1, 2, 9)


@pytest.mark.parametrize("operation", LOANS)
def test_a_borrower_is_told_if_it_may_only_read(operation: Operation) -> None:
    for writable in (True, False):
        message = Message(5, operation, Status.OK, 1, 2, writable=writable)
        assert as_read(message).flags == (0 if writable else READONLY)

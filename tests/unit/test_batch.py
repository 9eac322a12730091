"""A doorbell's descriptors read together: the same as each by itself, and cut where they part."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmm.ferry.batch import Series, read
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Flags, Operation, Status


def described(
    operation: int,
    to: int,
    extents: list[tuple[int, int]],
    payload: int = 0,
    length: int = 0,
    flags: int = 0,
    reserved: int = 0,
) -> bytes:
    raw = abi.Descriptor(operation=operation, receiver=to, flags=flags, length=length, tag=to)
    raw.extent_count, raw.payload_length, raw.reserved0 = len(extents), payload, reserved
    for index, byte in enumerate(b"payload"):
        raw.payload[index] = byte
    for place, (page, pages) in zip(raw.extents, extents, strict=False):
        place.gpa, place.pages = abi.WINDOW_GPA + page * PAGE_SIZE, pages
    return bytes(raw)


EXTENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=abi.EXTENTS_MAX + 1)
DESCRIPTORS = st.lists(
    st.builds(
        described,
        st.sampled_from([*[Operation.SEND] * 4, *Operation, 99]),
        st.integers(1, 2),
        EXTENTS | st.tuples(st.tuples(st.integers(0, 4), st.integers(0, 2))).map(list),
        st.sampled_from([0, 0, 7, abi.PAYLOAD_MAX, abi.PAYLOAD_MAX + 1]),
        st.sampled_from([0, 0, PAGE_SIZE, 3 * PAGE_SIZE]),
        st.sampled_from([0, 0, 0, int(Flags.READONLY), 2]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    max_size=8,
)


@given(DESCRIPTORS)
def test_what_is_read_together_is_what_each_is_by_itself(descriptors: list[bytes]) -> None:
    batch = read(b"".join(descriptors))
    alone = [read(descriptor).requests()[0] for descriptor in descriptors]
    assert batch.requests() == alone
    asked = [request for request in alone if not isinstance(request, Status)]
    assert batch.asked == len(descriptors)
    assert batch.operations == {request.operation for request in asked}
    assert batch.extents == sum(len(request.spans) for request in asked)
    assert batch.pages == sum(pages for request in asked for _, pages in request.spans)


@given(DESCRIPTORS)
def test_only_what_is_adjacent_and_goes_to_the_same_peer_is_one_series(
    descriptors: list[bytes],
) -> None:
    for series in read(b"".join(descriptors)).series:
        if isinstance(series, Status) or not series.others:
            continue
        requests = series.requests()
        assert {(each.receiver, each.operation, each.writable) for each in requests} == {
            (series.first.receiver, series.first.operation, series.first.writable)
        }
        assert series.first.operation in (Operation.SEND, Operation.LEND)
        assert all(len(each.spans) == 1 for each in requests)
        for before, after in itertools.pairwise(requests):
            assert before.spans[0].end == after.spans[0].gpa


def test_pages_that_are_sent_one_by_one_and_are_adjacent_are_one_series() -> None:
    pages = [described(Operation.SEND, 1, [(page, 1)]) for page in range(abi.TX_ENTRIES)]
    (series,) = read(b"".join(pages)).series
    assert isinstance(series, Series)
    assert (len(series.others), series.touched) == (abi.TX_ENTRIES - 1, False)


def test_what_is_adjacent_and_goes_elsewhere_touches_it() -> None:
    pages = [described(Operation.SEND, to, [(to, 1)]) for to in (1, 2)]
    assert [series[2] for series in read(b"".join(pages)).series] == [True, True]  # type: ignore[index]

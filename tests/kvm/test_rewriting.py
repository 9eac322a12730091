"""Descriptors that change while the monitor reads them: it reads each of them once."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from kvm.puppets import GATHER, Desk, Puppet, Stage, descriptor, spans_of
from tests_support import sized

from vmm import Monitor
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status

# Of the ring the last one is for what the puppet itself has to say.
ENTRIES = sized(abi.TX_ENTRIES - 1, 23)
# What lies between these is rewritten in one piece: counts, the reserved fields, one extent.
_FROM, _TO = abi.Descriptor.extent_count.offset, abi.Descriptor.extents.offset + 16
REFUSED = {Status.E_RESERVED, Status.E_LENGTH}


def versions(index: int, base: int, receiver: int = 0) -> list[abi.Descriptor]:
    """Return what the n-th descriptor is by turns: right, or wrong beside a good extent.

    That extent is in no version that is right: sent all the same, it would show.
    """
    one, two = base + 3 * index * PAGE_SIZE, base + (3 * index + 1) * PAGE_SIZE
    rights = [descriptor(Operation.SEND, receiver, extent) for extent in ((one, 1), (two, 2))]
    wrongs = [descriptor(Operation.SEND, receiver, (two, 1)) for _ in range(4)]
    wrongs[0].reserved0 = wrongs[1].reserved1[1] = wrongs[2].extents[0].attributes = 1
    wrongs[3].payload_length = 193
    return [*rights * 2, *wrongs]


@contextmanager
def rewritten(puppet: Puppet) -> Iterator[None]:
    """Rewrite each entry of the transmit ring whenever this thread calls anything, or returns from
    it, while it answers a doorbell: no thread beside it would come in between as often.
    """
    guest, choice = puppet.machine.guest, random.Random(1)
    ring = abi.CONTROL_GPA + abi.Control.tx.offset
    first, size = guest.control.tx_tail, len(bytes(abi.Descriptor()))
    parts = [[bytes(v)[_FROM:_TO] for v in versions(i, puppet.base)] for i in range(ENTRIES)]

    def rewrite(frame: FrameType, event: str, _: object) -> None:
        if guest.control.tx_tail != first:
            return  # all are answered
        for index, versions_ in enumerate(parts):
            entry = ring + (first + index) % abi.TX_ENTRIES * size
            guest.memory.write(entry + _FROM, choice.choice(versions_))

    before = sys.getprofile()
    sys.setprofile(rewrite)
    try:
        yield
    finally:
        sys.setprofile(before)


def gather(puppet: Puppet, gpas: list[int]) -> list[int]:
    """Return the words at these addresses."""
    words = struct.pack(f"<{len(gpas)}Q", *gpas)
    puppet.machine.guest.memory.write(puppet._desk + Desk.words.offset, words)
    puppet._order(GATHER, len(gpas))
    return list(puppet.desk.words[: len(gpas)])


@pytest.mark.smaller_in_lanes("a third of the ring: all of it is rewritten at each call")
def test_each_answer_and_each_message_belong_to_one_version(
    open_monitor: Callable[..., Monitor],
) -> None:
    monitor = open_monitor(pool="64M")
    a, b = Stage(monitor, "ab", queue=128).puppets
    before = monitor.audit()
    assert a.alloc(3 * ENTRIES) == [(a.base, 3 * ENTRIES)]
    a.write(a.base, 1000, 3 * ENTRIES)
    with rewritten(a):
        answers = a.ask(*(versions(index, a.base, b.number)[0] for index in range(ENTRIES)))
    places = {message.message: spans_of(message)[0] for message in b.inbox()}
    words = gather(b, [gpa + i * PAGE_SIZE for gpa, n in places.values() for i in range(n)])
    contents = {n: [words.pop(0) for _ in range(place.pages)] for n, place in places.items()}
    for index, answer in enumerate(answers):
        if answer.status == Status.OK:
            one, two = [1000 + 3 * index], [1001 + 3 * index, 1002 + 3 * index]
            assert contents.pop(answer.message) in (one, two)
    assert not contents
    assert {answer.status for answer in answers} == {Status.OK, *REFUSED}
    for puppet in (a, b):
        puppet.give_up(Operation.RELEASE, [Hold.OWNED])
    assert monitor.audit() == before

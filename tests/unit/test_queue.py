"""A peer's queue: first in, first out, bounded."""

from __future__ import annotations

import pytest

from vmm.ferry.message import Message
from vmm.ferry.queue import Queue
from vmm.guest.abi import Operation, Status


def message(number: int) -> Message:
    return Message(number, Operation.SEND, Status.OK, 1, 2)


def numbers(queue: Queue) -> list[int]:
    return [message.number for message in queue]


def test_messages_leave_in_the_order_in_which_they_came() -> None:
    queue = Queue(4)
    for number in (3, 1, 2):
        queue.put(message(number))
    assert numbers(queue) == [3, 1, 2]
    assert [queue.get().number for _ in range(3)] == [3, 1, 2]
    assert len(queue) == 0


def test_a_full_queue_takes_no_more_until_one_leaves() -> None:
    queue = Queue(2)
    assert queue.room == 2
    queue.put(message(1))
    queue.put(message(2))
    assert queue.room == 0
    with pytest.raises(OverflowError):
        queue.put(message(3))
    assert numbers(queue) == [1, 2]
    queue.get()
    queue.put(message(3))
    assert numbers(queue) == [2, 3]


def test_a_message_that_came_back_is_taken_by_a_full_queue_too() -> None:
    queue = Queue(1)
    queue.put(message(1))
    queue.put_back(message(2))
    assert numbers(queue) == [1, 2]
    assert queue.room == 0  # and not less than none
    queue.get()
    assert queue.room == 0
    queue.get()
    assert queue.room == 1


@pytest.mark.parametrize("own", [1, 2])
def test_a_full_queue_takes_as_many_of_each_sender_as_have_a_place_of_their_own(own: int) -> None:
    queue = Queue(1, own)
    for sender in (1, 2, 3):
        for number in range(own):
            assert queue.takes(sender)
            queue.put(Message(number, Operation.SEND, Status.OK, sender, 9))
        assert not queue.takes(sender)
    queue.get()  # the first sender's
    assert [queue.takes(sender) for sender in (1, 2, 3)] == [True, False, False]


def test_an_empty_queue_is_false_and_has_nothing_to_get() -> None:
    queue = Queue(1)
    assert not queue
    with pytest.raises(IndexError):
        queue.get()


def test_a_queue_of_no_depth_takes_nothing_but_what_comes_back() -> None:
    queue = Queue(0)
    with pytest.raises(OverflowError):
        queue.put(message(1))
    queue.put_back(message(1))
    assert numbers(queue) == [1]


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_message_is_withdrawn_from_wherever_it_is(gone: int) -> None:
    queue = Queue(3)
    for number in (1, 2, 3):
        queue.put(message(number))
    queue.withdraw(message(gone))
    assert numbers(queue) == [number for number in (1, 2, 3) if number != gone]
    assert queue.room == 1


def test_what_is_not_there_cannot_be_withdrawn() -> None:
    queue = Queue(2)
    queue.put(message(1))
    with pytest.raises(ValueError, match="not in deque"):
        queue.withdraw(message(2))
    assert (numbers(queue), queue.room) == ([1], 1)


def test_a_queue_beyond_its_depth_has_no_room_after_a_withdrawal_either() -> None:
    queue = Queue(1)
    queue.put(message(1))
    queue.put_back(message(2))
    queue.put_back(message(3))
    queue.withdraw(message(2))
    assert (numbers(queue), queue.room) == ([1, 3], 0)
    queue.withdraw(message(1))
    queue.withdraw(message(3))
    assert queue.room == 1

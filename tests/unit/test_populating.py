"""How much is mapped at once, in a turn."""

from __future__ import annotations

from vmm.memory.populating import AT_ONCE, Populating


def test_in_a_turn_no_more_is_than_there_may_be_and_in_the_next_one_as_much_again() -> None:
    populating, each = Populating(), 500
    for turn in (1, 2, 5):
        wanted = [populating.wants(each, turn) for _ in range(AT_ONCE // each + 3)]
        assert wanted == [True] * (AT_ONCE // each) + [False] * 3
        assert populating.wants(AT_ONCE % each, turn)  # what is left of it
        assert not populating.wants(1, turn)


def test_what_is_too_much_for_a_turn_leaves_room_for_less() -> None:
    populating = Populating()
    assert [populating.wants(AT_ONCE + 1, 1), populating.wants(AT_ONCE, 1)] == [False, True]

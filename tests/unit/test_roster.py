"""The roster: what each machine reads of the others, and who is woken when that changes."""

from __future__ import annotations

from typing import cast

import pytest

from vmm.ferry.control import ControlStructure, Identity, Notice
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.ferry.roster import _NAMES_LEFT, Roster
from vmm.guest import abi
from vmm.guest.abi import Doorbell, Operation, PeerFlags, Status
from vmm.memory.movers import Window

ALIVE, SEND, ROOM = PeerFlags.ALIVE, PeerFlags.SEND, PeerFlags.ROOM
NO_WINDOW = cast("Window", None)


def message(number: int = 1) -> Message:
    return Message(number, Operation.SEND, Status.OK, 1, 2)


class Club:
    """A roster of machines that have all run, and of the host; nobody knows anybody yet."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.roster = Roster(lambda peer: self.woken.append(peer.name))
        self.host = Peer(abi.PEER_HOST, "host", NO_WINDOW, depth=2)
        self.roster.join(self.host)
        self.memory: dict[str, bytearray] = {}
        self.a, self.b, self.c = (self.machine(n, name) for n, name in enumerate("abc", 1))

    def machine(self, number: int, name: str, *, depth: int = 2, entered: bool = True) -> Peer:
        self.memory[name] = bytearray(CONTROL_BYTES)
        identity = Identity(number, name, 3, Doorbell.PIO, 0, 0, 0, 0)
        control = ControlStructure(memoryview(self.memory[name]), identity)
        peer = Peer(number, name, NO_WINDOW, depth, control)
        peer.entered = entered
        self.roster.join(peer)
        return peer

    def guest(self, peer: Peer) -> abi.Control:
        return abi.Control.from_buffer(self.memory[peer.name])

    def table(self, peer: Peer) -> list[tuple[str, PeerFlags, int]]:
        """What a machine reads of its peers: name, flags, room."""
        guest = self.guest(peer)
        entries = guest.peers[: guest.peer_count]
        return [(entry.name.decode(), PeerFlags(entry.flags), entry.room) for entry in entries]

    def notices(self, peer: Peer) -> int:
        assert self.guest(peer).notice_count == self.guest(peer).peer_notices
        return int(self.guest(peer).peer_notices)


@pytest.fixture
def club() -> Club:
    return Club()


# ---- Tables ----


def test_a_channel_lets_each_see_the_other_and_one_send(club: Club) -> None:
    club.roster.connect(club.a, club.b)
    assert club.table(club.a) == [("b", ALIVE | SEND | ROOM, 2)]
    assert club.table(club.b) == [("a", ALIVE | ROOM, 2)]
    assert club.table(club.c) == []
    assert club.a.receiver(club.b.number) is club.b
    assert club.b.receiver(club.a.number) is None


def test_a_channel_back_makes_no_second_entry(club: Club) -> None:
    for pair in ((club.a, club.b), (club.a, club.c), (club.b, club.a)):
        club.roster.connect(*pair)
    assert club.table(club.a) == [("b", ALIVE | SEND | ROOM, 2), ("c", ALIVE | SEND | ROOM, 2)]
    assert club.table(club.b) == [("a", ALIVE | SEND | ROOM, 2)]
    assert [entry.id for entry in club.guest(club.a).peers[:2]] == [2, 3]


def test_the_host_has_a_place_in_tables_and_none_of_its_own(club: Club) -> None:
    club.roster.connect(club.host, club.a)
    assert club.table(club.a) == [("host", ALIVE | ROOM, 2)]
    assert club.host.receiver(club.a.number) is club.a


def test_a_peer_is_found_by_its_number_as_long_as_it_lives(club: Club) -> None:
    club.roster.connect(club.a, club.b)
    assert club.roster[2] is club.roster.get(2) is club.b
    club.b.alive = False
    club.roster.leave(club.b)
    assert club.roster.get(2) is None
    with pytest.raises(KeyError):
        club.roster[2]
    assert (club.roster.name(2), club.roster.name(99)) == ("b", None)
    assert club.table(club.a) == [("b", SEND, 2)]


# ---- Room ----


def test_the_senders_entry_counts_the_room_and_the_others_say_if_there_is_any(club: Club) -> None:
    for sender in (club.a, club.c):
        club.roster.connect(sender, club.b)
    club.roster.put(club.a, club.b, message())
    assert club.table(club.a) == [("b", ALIVE | SEND | ROOM, 1)]
    assert club.table(club.c) == [("b", ALIVE | SEND | ROOM, 2)]  # as of its own last message
    club.roster.put(club.a, club.b, message())
    assert club.table(club.a) == [("b", ALIVE | SEND, 0)]
    assert club.table(club.c) == [("b", ALIVE | SEND | ROOM, 0)]  # a place of its own
    club.roster.get_message(club.b)
    assert club.table(club.a) == club.table(club.c) == [("b", ALIVE | SEND | ROOM, 1)]


def test_a_queue_that_is_full_or_not_as_before_is_no_reason_to_write(
    club: Club, monkeypatch: pytest.MonkeyPatch
) -> None:
    club.roster.connect(club.a, club.b)
    written = []
    put = ControlStructure.put_flags
    monkeypatch.setattr(
        ControlStructure, "put_flags", lambda *args: written.append(args[1]) or put(*args)
    )
    for _ in range(3):  # the second makes it full, the third is over its depth
        club.roster.put_back(club.b, message())
    assert len(written) == 1
    for _ in range(3):  # the second makes room
        club.roster.get_message(club.b)
    assert len(written) == 2


def test_who_waits_for_room_is_woken_when_there_is_some_in_the_order_in_which_they_came(
    club: Club,
) -> None:
    for sender in (club.a, club.c, club.host):
        club.roster.connect(sender, club.b)
    club.b.waiters = {club.c.number: club.c, club.a.number: club.a}
    club.woken.clear()
    for _ in range(3):
        club.roster.put_back(club.b, message())
    club.roster.get_message(club.b)
    assert club.woken == ["b"] * 3  # by its messages; it has been full since the second
    club.woken.clear()
    club.roster.get_message(club.b)
    assert club.woken == ["c", "a"]
    assert club.b.waiters == {}
    club.roster.get_message(club.b)
    assert club.woken == ["c", "a"]


def test_who_waits_on_after_it_was_woken_is_kept(club: Club) -> None:
    """Another was faster: its wait puts it there again, while the others are still being woken."""
    roster = Roster(lambda peer: club.b.waiters.update({peer.number: peer}))
    roster.join(club.b)
    for _ in range(2):
        club.b.queue.put(message())
    roster._room_changed(club.b)
    club.b.waiters = {club.c.number: club.c, club.a.number: club.a}
    roster.get_message(club.b)
    assert list(club.b.waiters.values()) == [club.c, club.a]


def test_a_withdrawn_message_leaves_room_and_who_waits_for_that_is_told(club: Club) -> None:
    for sender in (club.a, club.c):
        club.roster.connect(sender, club.b)
    first, second = message(1), message(2)
    for one in (first, second):
        club.roster.put(club.a, club.b, one)
    assert club.table(club.a) == [("b", ALIVE | SEND, 0)]
    club.b.waiters = {club.c.number: club.c}
    club.woken.clear()
    club.roster.withdraw(club.b, first)
    assert list(club.b.queue) == [second]
    assert club.table(club.a) == club.table(club.c) == [("b", ALIVE | SEND | ROOM, 1)]
    assert (club.woken, club.b.waiters, club.b.full) == (["c"], {}, False)


def test_a_flood_of_one_sender_leaves_each_of_the_others_a_place(club: Club) -> None:
    for sender in (club.a, club.c):
        club.roster.connect(sender, club.b)
    for _ in range(2):
        club.roster.put(club.a, club.b, message())
    own = message()._replace(sender=club.c.number)
    for _ in range(3):
        assert not club.b.queue.takes(club.a.number)
        assert club.b.queue.takes(club.c.number)
        club.roster.put(club.c, club.b, own)
        assert club.table(club.c) == [("b", ALIVE | SEND, 0)]
        with pytest.raises(OverflowError):
            club.roster.put(club.c, club.b, own)
        club.b.waiters = {club.c.number: club.c}
        while club.roster.get_message(club.b).sender != club.c.number:
            club.roster.put_back(club.b, message())
        assert club.table(club.c) == [("b", ALIVE | SEND | ROOM, 0)]  # though it is full
        assert club.woken.pop() == "c"


def test_who_gets_a_message_is_woken(club: Club) -> None:
    club.roster.connect(club.a, club.b)
    club.woken.clear()
    club.roster.put(club.a, club.b, message())
    club.roster.put_back(club.a, message())
    assert club.woken == ["b", "a"]


# ---- Notices ----


def test_a_new_peer_and_a_new_channel_are_news_to_who_has_run(club: Club) -> None:
    club.roster.connect(club.a, club.b)
    assert [club.notices(peer) for peer in (club.a, club.b, club.c)] == [1, 1, 0]
    assert sorted(club.woken) == ["a", "b"]
    club.roster.connect(club.b, club.a)
    assert [club.notices(peer) for peer in (club.a, club.b)] == [2, 2]


def test_nothing_is_news_to_who_has_not_run_yet(club: Club) -> None:
    fresh = club.machine(4, "fresh", entered=False)
    for other in (club.a, club.b):
        club.roster.connect(fresh, other)
    club.a.alive = False
    club.roster.leave(club.a)
    assert club.table(fresh) == [("a", SEND, 2), ("b", ALIVE | SEND | ROOM, 2)]
    assert club.notices(fresh) == 0
    assert "fresh" not in club.woken


def test_a_death_is_news_to_who_knew_the_dead_and_wakes_who_waited_for_it(club: Club) -> None:
    club.roster.connect(club.a, club.b)
    club.roster.connect(club.b, club.host)
    club.b.waiters = {club.c.number: club.c}
    club.woken.clear()
    club.b.alive = False
    club.roster.leave(club.b)
    assert [club.notices(peer) for peer in (club.a, club.c)] == [2, 0]
    assert club.woken == ["a", "c"]


def test_the_host_has_nothing_of_a_machine_that_has_been_removed_but_its_name(club: Club) -> None:
    club.roster.connect(club.host, club.a, both=True)
    for number in range(10, 10 + 3 * _NAMES_LEFT):
        machine = club.machine(number, f"machine-{number}")
        club.roster.connect(club.host, machine, both=True)
        machine.alive = False
        club.roster.leave(machine)
        assert number in club.host.table  # it has stopped, no more
        club.roster.forget(machine)
        assert club.roster.name(number) == f"machine-{number}"
    assert list(club.host.table) == [club.a.number]
    assert club.host.receiver(club.a.number) is club.a
    assert len(club.roster._names) == _NAMES_LEFT + len([*club.roster])


def test_the_dead_are_told_nothing(club: Club) -> None:
    for other in (club.b, club.c):
        club.roster.connect(club.a, other)
    club.a.alive = False
    club.roster.leave(club.a)
    before = bytes(club.memory["a"])
    for _ in range(2):
        club.roster.put_back(club.b, message())  # full now
    club.c.alive = False
    club.roster.leave(club.c)
    assert bytes(club.memory["a"]) == before


def test_the_host_has_nowhere_to_read_a_notice(club: Club) -> None:
    club.roster.notice(club.host, Notice.HOST, 1)
    assert club.woken == []


def test_the_hosts_notice_reaches_who_has_not_run_yet(club: Club) -> None:
    fresh = club.machine(4, "fresh", entered=False)
    club.roster.notice(fresh, Notice.HOST, 6)
    guest = club.guest(fresh)
    assert (guest.notices, guest.notice_count, guest.host_notices) == (6, 1, 1)

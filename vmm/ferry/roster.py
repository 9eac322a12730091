"""The roster: who is there, who may send to whom, and what each is told of the others.

A machine finds its peers in its control structure: name, liveness, whether their queues have room.
What is written there is kept up to date here, and whoever waits for a change is woken.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

from vmm.ferry.control import Notice
from vmm.ferry.message import Message
from vmm.ferry.peer import Entry, Peer
from vmm.guest.abi import PEERS_MAX, PeerFlags
from vmm.memory.journal import IDLE, Journal

# Plain numbers: the operators of enum.IntFlag cost more than all else that writing an entry does.
_ALIVE, _SEND, _ROOM = int(PeerFlags.ALIVE), int(PeerFlags.SEND), int(PeerFlags.ROOM)
_NAMES_LEFT = 256  # of machines that have been removed, as traces tell them


class Roster:
    """Peers, and the channels between them. Not thread-safe: used under the monitor's lock.

    wake    called with a peer for which something has changed: it may be waiting for that
    """

    def __init__(self, wake: Callable[[Peer], None], journal: Journal = IDLE) -> None:
        self.turn = 0
        self._journal = journal
        self.wake = wake
        self._peers: dict[int, Peer] = {}
        self._names: dict[int, str] = {}  # of the dead too: their messages live on
        self._forgotten: collections.deque[int] = collections.deque()

    def saved(self) -> dict[int, Peer]:
        return self._peers.copy()

    def restore(self, saved: dict[int, Peer]) -> None:
        self._peers.clear()
        self._peers.update(saved)

    def __iter__(self) -> Iterator[Peer]:
        """Yield the peers that are alive."""
        return iter(self._peers.values())

    def __getitem__(self, number: int) -> Peer:
        """Return a peer that is alive. Raises KeyError."""
        return self._peers[number]

    def get(self, number: int) -> Peer | None:
        """Return a peer, or None if it has stopped, or never was."""
        return self._peers.get(number)

    def name(self, number: int) -> str | None:
        """Return the name of a peer, also of one that has stopped; of very many that have been
        removed, that of the last ones.
        """
        return self._names.get(number)

    def join(self, peer: Peer) -> None:
        """Admit a peer, with no channels."""
        self._journal.keep(self)
        self._peers[peer.number] = peer
        self._names[peer.number] = peer.name

    def leave(self, peer: Peer) -> None:
        """A peer has stopped: whoever knows it sees that, and whoever waits for it is woken."""
        self._journal.keep(self)
        del self._peers[peer.number]
        for entry in peer.table.values():
            other = entry.peer
            if other.alive:
                self._write(other, other.table[peer.number])
                self._news(other)
        self._wake_waiters(peer)

    def forget(self, peer: Peer) -> None:
        """A peer that has stopped is removed: the host, whose table has no end, has it no more."""
        for entry in peer.table.values():
            other = entry.peer
            if other.control is None and peer.number in other.table:
                known = other.table[peer.number]
                self._journal.undo(partial(_put_entry, other, peer.number, known))
                del other.table[peer.number]
        self._forgotten.append(peer.number)
        while len(self._forgotten) > _NAMES_LEFT:
            self._names.pop(self._forgotten.popleft(), None)

    def connect(self, sender: Peer, receiver: Peer, *, both: bool = False) -> None:
        """Open a channel: from now on `sender` may send to `receiver`, and each sees the other.

        both      whether `receiver` may send to `sender`, too
        """
        self._list(sender, receiver, may_send=True)
        self._list(receiver, sender, may_send=both)

    def _list(self, peer: Peer, other: Peer, *, may_send: bool) -> None:
        entry = peer.table.get(other.number)
        before = None if entry is None else dataclasses.replace(entry)
        self._journal.undo(partial(_put_entry, peer, other.number, before))
        if entry is None:
            entry = peer.table[other.number] = Entry(self._index(peer), other, may_send)
        entry.may_send |= may_send
        self._write(peer, entry)
        self._news(peer)

    def has_place(self, peer: Peer) -> bool:
        """Whether another peer fits into a machine's table, if need be for one that has stopped."""
        if peer.control is None or len(peer.table) < PEERS_MAX:
            return True
        return any(not entry.peer.alive for entry in peer.table.values())

    def _index(self, peer: Peer) -> int:
        """Return a free place in a peer table, or that of a peer that has stopped."""
        if peer.control is None or len(peer.table) < PEERS_MAX:
            return len(peer.table)
        dead = next(entry for entry in peer.table.values() if not entry.peer.alive)
        self._journal.undo(partial(_put_entry, peer, dead.peer.number, dead))
        del peer.table[dead.peer.number]
        return dead.index

    @staticmethod
    def _write(peer: Peer, entry: Entry) -> None:
        """Write one entry of a peer's table."""
        if peer.control is not None:
            other = entry.peer
            flags, room = _flags(peer, entry), other.queue.room
            peer.control.put_peer(entry.index, other.number, other.name, flags, room)

    def write_again(self, peer: Peer) -> None:
        """Write a peer's table as it should be: what was there may be an older one."""
        for entry in peer.table.values():
            self._write(peer, entry)

    # ---- Queues ----

    def put(self, sender: Peer, receiver: Peer, *messages: Message) -> None:
        """Put messages into a queue that has room, and let the sender see what is left."""
        if receiver.turn != self._journal.turn:
            self._journal.keep(receiver)
        queue = receiver.queue
        if len(messages) > 1:
            queue.put_all(messages)
        else:
            queue.put(*messages)
        if receiver.full is bool(queue.room):
            self._room_changed(receiver)
        control = sender.control
        if control is not None:
            entry = sender.table.get(receiver.number)
            if entry is not None:
                if queue.room:
                    control.put_room(entry.index, queue.room)
                else:  # its own place is taken
                    control.put_flags(entry.index, _flags(sender, entry), 0)
        self.wake(receiver)

    def put_back(self, receiver: Peer, message: Message) -> None:
        """Put a message that is the receiver's by right into its queue, full or not."""
        self._journal.keep(receiver)
        receiver.queue.put_back(message)
        self._room_changed(receiver)
        self.wake(receiver)

    def get_message(self, peer: Peer) -> Message:
        """Take the oldest message out of a queue that has one."""
        if peer.turn != self._journal.turn:
            self._journal.keep(peer)
        message = peer.queue.get()
        if peer.full is bool(peer.queue.room):
            self._room_changed(peer)
        elif peer.full:
            self._place_free(peer, message.sender)
        return message

    def get_messages(self, peer: Peer, count: int) -> list[Message]:
        """Take so many of the oldest messages out of a queue, which has them."""
        messages: list[Message] = []
        while peer.full and len(messages) < count:  # each may make room for somebody
            messages.append(self.get_message(peer))
        if peer.turn != self._journal.turn:
            self._journal.keep(peer)
        return messages + peer.queue.get_all(count - len(messages))

    def _place_free(self, peer: Peer, number: int) -> None:
        """Tell a sender whose message has left a queue that is full of others' that it has room."""
        sender = self._peers.get(number)
        entry = None if sender is None else sender.table.get(peer.number)
        if sender is None or entry is None or not peer.queue.takes(number):
            return
        if sender.control is not None:
            sender.control.put_flags(entry.index, _flags(sender, entry), 0)
        if number in peer.waiters:
            self.wake(sender)

    def withdraw(self, peer: Peer, message: Message) -> None:
        """Take a message out of a queue again that has not been dequeued."""
        self._journal.keep(peer)
        peer.queue.withdraw(message)
        self._room_changed(peer)

    def _room_changed(self, peer: Peer) -> None:
        """Tell all who know a peer that its queue is full, or no longer is.

        Only that: a write to each of them for each message would make every message dearer with
        every peer.
        """
        full = peer.queue.room == 0
        if full == peer.full:
            return
        peer.full = full
        room = peer.queue.room
        for known in peer.table.values():
            other = known.peer
            if other.control is not None and other.alive:
                entry = other.table[peer.number]
                other.control.put_flags(entry.index, _flags(other, entry), room)
        if not full:
            self._wake_waiters(peer)

    def _wake_waiters(self, peer: Peer) -> None:
        """Wake all who wait for room, oldest first: who finds none left waits on, behind them."""
        if not peer.waiters:
            return
        self._journal.keep(peer)
        waiters, peer.waiters = peer.waiters, {}
        for waiter in waiters.values():
            self.wake(waiter)

    # ---- Notices ----

    def _news(self, peer: Peer) -> None:
        """Say that the peer table has changed; what it is from the beginning is no news."""
        if peer.entered:
            self.notice(peer, Notice.PEER)

    def notice(self, peer: Peer, kind: Notice, bits: int = 0) -> None:
        """Put a notice into a machine's control structure, and wake it if it waits for one."""
        if peer.control is not None:
            peer.control.notice(kind, bits)
            self.wake(peer)


def _put_entry(peer: Peer, number: int, entry: Entry | None) -> None:
    """Let a peer table say this of a peer, or nothing."""
    if entry is None:
        peer.table.pop(number, None)
    else:
        peer.table[number] = entry


def _flags(peer: Peer, entry: Entry) -> int:
    """Return the PeerFlags of an entry of a peer's table."""
    flags = _SEND if entry.may_send else 0
    if entry.peer.alive:
        flags |= _ALIVE | _ROOM if entry.peer.queue.takes(peer.number) else _ALIVE
    return flags

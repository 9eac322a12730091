"""The usual turn: one doorbell of a machine, from its exit to the next entry, in a straight line.

Nearly all doorbells send one message whose receiver waits for it, or wait for one. What the driver
and the exchange do for such a one takes some sixty calls of functions, after an exit each one to
two microseconds. Here it is done at once: all that can be in the way is looked at first, and
whatever is, or is not as usual, is left to them. So this decides nothing by itself: what it does is
what they would have done, to the last byte (tests/kvm/test_turn.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmm.engine.arrivals import hand_over, take_in
from vmm.engine.machine import Machine, State
from vmm.engine.undoing import Undoing
from vmm.ferry.at_once import MOST, OPERATIONS, SENT, Runs, moves
from vmm.ferry.control import Wait
from vmm.ferry.events import Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.layout import (
    BELL_STATUS,
    DESCRIPTOR,
    EXTENTS,
    I32,
    LETTER,
    MASK,
    MESSAGE,
    PAYLOAD,
    PEER,
    PEERS,
    ROOM,
    RX_TAIL,
    SPANS,
    STAMP,
    STATUS,
    TX,
    TX_HEAD,
    TX_TAIL,
    U32,
    U64,
    WAIT,
    WAIT_TIMEOUT,
)
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Bell, Status, WaitFor

_TRANSMIT, _WAIT, _TRANSMIT_WAIT = map(int, (Bell.TRANSMIT, Bell.WAIT, Bell.TRANSMIT_WAIT))
_FOR_MESSAGE, _FOR_ROOM, _FOREVER = int(WaitFor.MESSAGE), int(WaitFor.ROOM), abi.FOREVER
_TX_ENTRIES, _RX_ENTRIES, _PAYLOAD_MAX = abi.TX_ENTRIES, abi.RX_ENTRIES, abi.PAYLOAD_MAX
_NO_PAGES = (), (), (), True, False  # what a message says that has none
_OK, _NOWHERE = Status.OK, (0, 0)
_UNDOING = Undoing()
_new = tuple.__new__


class Turn:
    """What is usual, for all machines of one monitor. Called in a hold of the monitor's lock.

    machines  by their peers' numbers
    wake      called with a peer whose machine waits, and for which a message has come
    """

    def __init__(
        self,
        exchange: Exchange,
        trace: Trace,
        machines: Mapping[int, Machine],
        wake: Callable[[Peer], None],
    ) -> None:
        self._exchange = exchange
        self._trace = trace
        self._journal = exchange.journal
        self._machines = machines
        self._wake = wake
        self._numbers = exchange.operations.numbers
        self._runs = Runs(exchange.ledger)

    def take(self, machine: Machine, *, hand_on: bool) -> Machine | State | None:
        """Act on a machine's exit, and ready whoever is to be entered next in the same slice.

        hand_on   whether that may be another one

        Returns that machine, itself or the one that has been waiting for its message; State.PARKED
        if it waits now, and has woken nobody; None, with nothing done, if it is not the usual turn.
        """
        guest, peer, exchange = machine.guest, machine.peer, self._exchange
        exit_ = machine.exit
        assert exit_ is not None
        bell = guest.last_bell if exit_ is guest.last else guest.bell(exit_)
        if (
            (bell != _TRANSMIT_WAIT and bell != _WAIT and bell != _TRANSMIT)
            or machine.ending is not None
            or machine.refused is not None
            or exchange.doorbell.freed
            or exchange.audited
            or self._trace.on
            or peer.parted
        ):
            return None
        if peer.queue:  # what it waits for is there already, perhaps
            taken = bell != _TRANSMIT and take_in(machine, bell, self._journal, _UNDOING)
            return machine if taken else None
        control = guest.control
        memory, tail = control.memory, control.tx_tail

        # What it sends: a payload, or one run, to one whose queue has room.
        receiver: Peer | None = None
        kind = to = tag = length = depth = place = entry = page = pages = 0
        payload = b""
        count = 0 if bell == _WAIT else (U32.unpack_from(memory, TX_HEAD)[0] - tail) & MASK
        if count != 1 and (count or bell == _TRANSMIT):
            return None
        if count:
            entry = TX + tail % _TX_ENTRIES * DESCRIPTOR
            kind, _, to, tag, length, _, counts, a, b, c = LETTER.unpack_from(memory, entry)
            size, extents = counts >> 16, counts & 0xFFFF
            row = peer.table.get(to)
            if size > _PAYLOAD_MAX or a or b or c or row is None or not row.may_send:
                return None
            receiver, place = row.peer, row.index
            depth = receiver.queue.room
            if not receiver.alive or not depth or receiver.full:
                return None
            if extents or kind != SENT:
                if extents != 1 or kind not in MOST:
                    return None
                gpa, pages, a = SPANS[1].unpack_from(memory, entry + EXTENTS)
                region = peer.window.region
                offset, bytes_ = gpa - region.base, pages * PAGE_SIZE
                page = offset // PAGE_SIZE
                if (
                    offset < 0
                    or offset % PAGE_SIZE
                    or pages < 1
                    or (pages > MOST[kind] and not moves(peer, kind, page, pages))
                    or offset + bytes_ > region.size
                    or length > bytes_
                    or a
                ):
                    return None
            elif length:
                return None
            payload = bytes(memory[entry + PAYLOAD : entry + PAYLOAD + size])

        # What it waits for: a message, or room that there is, or will be, as the receiver's queue
        # holds one message only.
        wait: Wait | None = None
        parks = stands = False
        left = 0  # in its receive ring
        if bell != _TRANSMIT:
            wait = _new(Wait, WAIT.unpack_from(memory, WAIT_TIMEOUT))
            timeout, flags, whom, _ = wait
            left = (control.rx_head - U32.unpack_from(memory, RX_TAIL)[0]) & MASK
            if timeout != _FOREVER or left > _RX_ENTRIES:
                return None
            if flags == _FOR_ROOM:
                other = peer.table.get(whom)
                if other is None or not other.peer.alive:
                    return None
                if other.peer is receiver and depth == 1:
                    stands = True
                elif not other.peer.queue.room:
                    return None
            elif (flags and flags != _FOR_MESSAGE) or left:
                return None
            else:
                parks = True

        # Whom it wakes. Pages go to one that waits, and with them whoever runs.
        next_: Machine | None = None
        waits = False
        if receiver is not None:
            next_ = self._machines.get(to)
            waits = next_ is not None and next_.state is State.PARKED
            if not (
                waits
                and receiver.idle
                and (parks or stands)
                and hand_on
                and not receiver.queue
                and next_ is not None
                and next_.ending is None
            ):
                next_ = None
                if stands or pages or depth == 1:
                    return None
            if left and pages:
                return None

        untaken = peer.untaken
        saved: tuple[Any, ...] = (
            (machine, exit_, machine.wait, machine.deadline, tail, control.rx_head),
            (tuple(untaken) if untaken else (), peer.sent),
            receiver,
            None if receiver is None else (tuple(receiver.queue), receiver.received),
            next_,
            None if next_ is None else (next_.wait, next_.deadline, next_.guest.control.rx_head),
        )
        moved: tuple[Any, ...] = _NO_PAGES
        if pages:
            assert receiver is not None
            moved = self._runs.bring(kind, peer, receiver, page, pages, _UNDOING, saved)
            if not moved:
                return None
        elif not self._journal.open(_UNDOING, saved):
            return None

        if receiver is not None:
            number = next(self._numbers)
            operation = OPERATIONS[kind & 0xFFFF]
            message = (number, operation, _OK, peer.number, to, tag, length, payload, *moved)
            STAMP.pack_into(memory, entry + STATUS, 0, peer.number)
            U64.pack_into(memory, entry + MESSAGE, number)
            control.tx_tail = tail = (tail + 1) & MASK
            U32.pack_into(memory, TX_TAIL, tail)
            peer.sent += 1
            if depth > 1:
                U32.pack_into(memory, PEERS + place * PEER + ROOM, depth - 1)
            if next_ is None:
                receiver.queue.append(_new(Message, message))
                receiver.queue.room = depth - 1
                if waits:
                    self._wake(receiver)
            else:
                hand_over(next_, receiver, _new(Message, message), kind)

        if wait is not None and untaken:
            if not left:
                untaken.clear()
            while len(untaken) > left:
                untaken.popleft()
        if parks or stands:
            machine.wait, machine.deadline = wait, None
            peer.idle = parks
            machine.state = State.PARKED if parks else State.READY
        else:
            I32.pack_into(memory, BELL_STATUS, 0)
            if guest.hypercall is not None:
                guest.answer(_OK)
        machine.exit = None
        guest.vcpu.forget_exit()
        self._journal.active = False  # from here on it has been
        if parks or stands:
            return next_ or State.PARKED
        return machine

    def ready(self, machine: Machine) -> bool:
        """Ready a machine to be entered that has no message to be brought. False, with nothing
        done, if there is more to be done about it.

        Without a journal: what is done here is done again by `Driver.prepare`, if it is cut off.
        """
        peer, wait, journal = machine.peer, machine.wait, self._journal
        if (
            peer.queue
            or not (peer.entered and peer.alive)
            or journal.active
            or journal.left
            or machine.ending is not None
        ):
            return False
        if wait is not None:
            row = peer.table.get(wait.peer)
            if (
                wait.flags != _FOR_ROOM
                or machine.deadline is not None
                or row is None
                or not row.peer.alive
            ):
                return False
            I32.pack_into(machine.guest.control.memory, BELL_STATUS, 0)
            if machine.guest.hypercall is not None:
                machine.guest.answer(_OK)
            machine.wait = None
        peer.idle = False
        return True

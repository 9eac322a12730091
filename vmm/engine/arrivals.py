"""What the usual turn puts into receive rings: a message for who waits, or what is there already.

As `Exchange.deliver` does for a machine whose ring is empty, in fewer calls.
"""

from __future__ import annotations

from typing import Any

from vmm.engine.machine import Machine, State
from vmm.engine.undoing import Undoing
from vmm.ferry.layout import (
    BELL_STATUS,
    DESCRIPTOR,
    I32,
    LAID,
    MASK,
    RX,
    RX_HEAD,
    RX_TAIL,
    TX_HEAD,
    U32,
    WAIT,
    WAIT_TIMEOUT,
)
from vmm.ferry.message import Message
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import Bell, Status, WaitFor
from vmm.memory.journal import Journal

_WAIT, _FOR_MESSAGE, _OK = int(Bell.WAIT), int(WaitFor.MESSAGE), Status.OK
_RX_ENTRIES = abi.RX_ENTRIES
_NOWHERE = 0, 0


def hand_over(machine: Machine, peer: Peer, message: Message, kind: int) -> None:
    """Put a message into the receive ring of a machine that waits for it, and end its wait."""
    control = machine.guest.control
    number, _, _, sender, to, tag, length, payload, spans, *_ = message
    head, memory, counts = control.rx_head, control.memory, len(spans) | len(payload) << 16
    gpa, pages = spans[0] if spans else _NOWHERE
    lay = kind, 0, sender, to, tag, length, number, counts, gpa, pages, payload
    LAID.pack_into(memory, RX + head % _RX_ENTRIES * DESCRIPTOR, *lay)
    control.rx_head = head = (head + 1) & MASK
    U32.pack_into(memory, RX_HEAD, head)
    peer.untaken.append(message)
    peer.received += 1
    I32.pack_into(memory, BELL_STATUS, 0)
    if machine.guest.hypercall is not None:
        machine.guest.answer(_OK)
    machine.wait = machine.deadline = None
    machine.state = State.READY
    peer.entered, peer.idle = True, False


def take_in(machine: Machine, bell: int, journal: Journal, table: Undoing) -> bool:
    """Answer a machine that sends nothing and waits for messages which are there already: it gets
    them all, in a turn that this begins. False, with nothing done, if it is not so, if pages are
    still to be brought, or if somebody is to know that there is room again.

    bell   that it has rung, one that waits
    """
    guest, peer = machine.guest, machine.peer
    control, queue, untaken = guest.control, peer.queue, peer.untaken
    memory, count = control.memory, len(queue)
    _, flags, _, _ = WAIT.unpack_from(memory, WAIT_TIMEOUT)
    if (
        (bell != _WAIT and U32.unpack_from(memory, TX_HEAD)[0] != control.tx_tail)
        or (flags and flags != _FOR_MESSAGE)
        or peer.full
        or not queue.room
        or count > _RX_ENTRIES
        or (control.rx_head - U32.unpack_from(memory, RX_TAIL)[0]) & MASK
    ):
        return False
    for message in queue:
        if message.targets and not message.brought:
            return False
    messages = tuple(queue)
    saved: tuple[Any, ...] = (
        (machine, machine.exit, machine.wait, machine.deadline, control.tx_tail, control.rx_head),
        (tuple(untaken), peer.sent),
        peer,
        (messages, peer.received),
        None,
        None,
    )
    if not journal.open(table, saved):
        return False
    queue.clear()
    queue.room = queue.depth
    control.deliver(messages)
    untaken.clear()
    untaken.extend(messages)
    peer.received += count
    I32.pack_into(memory, BELL_STATUS, 0)
    if guest.hypercall is not None:
        guest.answer(_OK)
    machine.exit = None
    guest.vcpu.forget_exit()
    journal.active = False  # from here on it has been
    return True

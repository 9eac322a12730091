"""What the usual turn has changed, and how it was before: put back if the turn is cut off."""

from __future__ import annotations

from typing import Any

from vmm.engine.machine import State


class Undoing:
    """The usual turn as a table of the journal's: who begins one says what is to be restored."""

    turn = 0  # never kept but by `Journal.open`

    def saved(self) -> Any:
        """Nothing is kept of it in a turn of others."""

    def restore(self, saved: Any) -> None:
        """Undo a turn."""
        own, (untaken, sent), receiver, there, other, wanted, *tables = saved
        for table, items in tables[0] if tables else ():
            table.restore(items)
        machine, exit_, wait, deadline, tail, head = own
        peer = machine.peer
        machine.exit, machine.wait, machine.deadline = exit_, wait, deadline
        machine.state = State.RUNNING
        machine.guest.control.places = tail, head
        peer.idle, peer.sent = False, sent
        peer.untaken.clear()
        peer.untaken.extend(untaken)
        if there is not None:
            queue, received = there
            receiver.queue.restore(queue)
            receiver.received = received
        if other is not None:
            other.wait, other.deadline, head = wanted
            other.state = State.PARKED
            control = other.guest.control
            control.places = control.tx_tail, head
            other.peer.untaken.clear()
            other.peer.idle = True

"""The driver: what happens between a machine's exit and its next entry.

It answers doorbells, delivers messages, parks who waits, and stops who cannot go on. Called by the
threads that run machines; all but `execute`, `tell` and `diagnose` in a turn.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial

from vmm.engine.guest import Asked
from vmm.engine.machine import Ending, Machine, State
from vmm.engine.standing import Standing
from vmm.engine.turn import Turn
from vmm.errors import GuestFault
from vmm.ferry.control import Wait
from vmm.ferry.events import Trace
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.rules import Refusal
from vmm.ferry.turns import Turns
from vmm.guest import abi
from vmm.guest.abi import Bell, Status, WaitFor
from vmm.guest.text import decoded, lines
from vmm.kvm import Exit, Intr

Console = Callable[[str, str], None]

# Plain numbers: what enums are asked for costs more than all else that is done for a bell.
_TRANSMIT, _WAIT, _TRANSMIT_WAIT = map(int, (Bell.TRANSMIT, Bell.WAIT, Bell.TRANSMIT_WAIT))
_DIRECT = int(Bell.DIRECT)
_MESSAGE, _ROOM, _NOTICE = (int(flag) for flag in WaitFor)
_ALL_WAITS = _MESSAGE | _ROOM | _NOTICE


class Driver:
    """Acts on exits, for all machines of one monitor.

    console   called with a machine's name and a line that it logged
    usual     the turns that it is not asked for
    """

    def __init__(
        self,
        exchange: Exchange,
        standing: Standing,
        trace: Trace,
        turns: Turns,
        console: Console,
        usual: Turn,
    ) -> None:
        self.usual = usual
        self.trace = trace
        self._exchange = exchange
        self._standing = standing
        self._turns = turns
        self._console = console

    def prepare(self, machine: Machine) -> None:
        """Deliver what waits for a machine, and answer the wait it was in."""
        peer, wait = machine.peer, machine.wait
        if not peer.alive:  # its end is under way
            return
        pending = self._exchange.deliver(peer) if peer.queue else None
        if wait is not None:
            status: Status | None = Status.OK
            if not (pending and peer.idle):
                status = self._holds(machine, wait, pending)
            if status is None:  # another was faster, or it has waited long enough
                status = Status.OK if machine.deadline is None else Status.E_TIMEOUT
            machine.guest.answer(status)
            machine.wait, machine.deadline = None, None
        peer.entered, peer.idle = True, False

    def execute(self, machine: Machine) -> Exit | Asked:
        """Run a machine until it exits; not at all, if it is to end. What the kernel refuses ends
        this machine, and no other.
        """
        if machine.ending is not None:
            return Intr()
        try:
            return machine.guest.enter()
        except OSError as error:
            machine.ending = Ending("internal", _refusal(error), error.errno or 0)
            return Intr()

    def tell(self, machine: Machine, exit_: Exit | Asked) -> None:
        """Tell who listens to the trace of an exit, before anything is done about it."""
        kind, bell = type(exit_).__name__, machine.guest.bell(exit_)
        self.trace.emit_now("exit", machine=machine.name, exit=kind, bell=bell)

    def handle(self, machine: Machine, exit_: Exit | Asked) -> bool:
        """Act on an exit: a doorbell is answered, anything else but a kick stops the machine.

        False if it is to be diagnosed first, or there is more to do than belongs into a turn.
        """
        guest = machine.guest
        bell = guest.bell(exit_)
        if machine.ending is not None:
            return self.end(machine, machine.ending)
        if bell in (_TRANSMIT, _TRANSMIT_WAIT):
            return self._transmit(machine, bell)
        if bell == _WAIT:
            self._wait(machine)
            return True
        if bell == _DIRECT:
            return self._direct(machine)
        if bell is not None:
            return self._answer(machine, bell)
        if type(exit_) is Asked:
            return self._serve(machine, exit_)
        if not isinstance(exit_, Intr) and not guest.takes(exit_):
            return machine.verdict is not None and self._stop(machine, machine.verdict)
        return True

    def _serve(self, machine: Machine, asked: Asked) -> bool:
        """Do what a guest's own side asks for."""
        if asked.fault is not None or asked.exit_code is not None:
            machine.exit_code = asked.exit_code
            return self._stop(machine, asked.fault)
        self._say(machine)
        if asked.parks:
            until = asked.until
            timeout = None if until is None else max(until - time.monotonic(), 0.0)
            self._standing.park(machine, timeout)
        return True

    def _say(self, machine: Machine, *, ended: bool = False) -> None:
        """Hand on what a guest has printed."""
        calls = machine.guest.untold(ended=ended)
        for call in calls:
            self._turns.outbox.put(call)
        if calls:
            self._turns.journal.later(machine.guest.tell)

    def _transmit(self, machine: Machine, bell: int | None) -> bool:
        peer = machine.peer
        if machine.refused is None:
            machine.refused = peer.refused
        status = self._exchange.transmit(peer)
        if status is None:
            return False
        refused, machine.refused = machine.refused, None
        if bell == _TRANSMIT_WAIT and status is Status.OK and peer.refused == refused:
            self._wait(machine)
        else:
            machine.guest.answer(status)
        return True

    def _direct(self, machine: Machine) -> bool:
        answer = self._exchange.serve(machine.peer, machine.guest.direct_request)
        if answer is not None:
            machine.guest.answer(answer.status)
        return answer is not None

    def diagnose(self, machine: Machine) -> None:
        """Find out why a machine cannot go on: that may take half a second."""
        exit_ = machine.exit
        if machine.verdict is not None or exit_ is None or isinstance(exit_, Asked):
            return
        if machine.guest.bell(exit_) is not None:
            return
        if machine.ending is not None:
            return
        try:
            machine.verdict = machine.guest.explain(exit_, partial(self._hold, machine.peer))
        except OSError as error:  # it was to run once more, and the kernel refused
            reason = f"{exit_}, and then {_refusal(error)}"
            machine.verdict = machine.guest.diagnosis.fault("internal", reason)

    def _hold(self, peer: Peer, gpa: int) -> abi.Hold:
        with self._turns.lock:
            return self._exchange.hold(peer, gpa)

    def _answer(self, machine: Machine, bell: int) -> bool:
        """Answer one of the bells that are not rung all the time. False if there is more to do."""
        guest = machine.guest
        if bell == Bell.LOG:
            guest.answer(self._log(machine))
        elif bell == Bell.EXIT:
            machine.exit_code = guest.control.exit_code
            return self._stop(machine, None)
        elif bell == Bell.PANIC:
            reason = "panic: " + decoded(b" ".join((guest.text() or b"").split()))
            return self._stop(machine, guest.diagnosis.fault("panic", reason))
        else:
            guest.answer(Status.E_BELL)
        return True

    # ---- Waiting ----

    def _wait(self, machine: Machine) -> None:
        """Answer a wait at once if what it is for holds, or park the machine."""
        guest, peer = machine.guest, machine.peer
        wait = guest.control.wait
        pending = self._exchange.deliver(peer) if peer.queue or peer.untaken else None
        status = self._holds(machine, wait, pending)
        if status is None and not wait.timeout_us:
            status = Status.E_TIMEOUT
        if status is not None:
            guest.answer(status)
            return
        machine.wait = wait
        peer.idle = not wait.flags or bool(wait.flags & _MESSAGE)
        if wait.flags & _ROOM:
            peer.table[wait.peer].peer.waiters[peer.number] = peer
        timeout_us = wait.timeout_us
        self._standing.park(machine, None if timeout_us == abi.FOREVER else timeout_us / 1e6)

    def wants(self, machine: Machine) -> bool:
        """Whether a parked machine has what it waits for."""
        wait, peer = machine.wait, machine.peer
        if wait is None:
            return False
        if peer.queue and (not wait.flags or wait.flags & _MESSAGE):
            return True
        if wait.flags & _ROOM and _room(peer, wait.peer) is not None:
            return True
        return self._holds(machine, wait) is not None

    @staticmethod
    def _holds(machine: Machine, wait: Wait, pending: int | None = None) -> Status | None:
        """Return how a wait is to be answered, or None if nothing that it is for holds.

        `pending` is how many messages it has in its receive ring, if that is known.
        """
        flags = wait.flags or _MESSAGE
        if flags & ~_ALL_WAITS:
            return Status.E_BELL
        if pending is None and flags & _MESSAGE:
            try:
                pending = machine.guest.control.pending()
            except Refusal as refusal:  # an index that makes no sense would wait for ever
                return refusal.status
        peer = machine.peer
        if flags & _MESSAGE and (pending or peer.queue):
            return Status.OK
        if flags & _NOTICE and machine.guest.control.notice_count != wait.seen:
            return Status.OK
        return _room(peer, wait.peer) if flags & _ROOM else None

    # ---- Text, and the end ----

    def _log(self, machine: Machine) -> Status:
        text = machine.guest.text()
        if text is None:
            return Status.E_ADDRESS
        for line in lines(text):
            self._turns.outbox.put(self._console, machine.name, line)
        return Status.OK

    def end(self, machine: Machine, ending: Ending) -> bool:
        """Stop a machine that is not running, with a fault that says why. False if there is more to
        do, in turns of their own; `ending` is to be its own until then.
        """
        return self._stop(machine, machine.guest.diagnosis.fault(ending.kind, ending.reason))

    def _stop(self, machine: Machine, fault: GuestFault | None) -> bool:
        if not self._exchange.leave(machine.peer):
            return False
        machine.state = State.STOPPED
        machine.fault = fault
        self._say(machine, ended=True)
        if self.trace:
            self.trace.emit(
                "stop",
                machine=machine.name,
                exit_code=machine.exit_code,
                fault=None if fault is None else fault.as_json,  # looked up when it is told
            )
        return True


def _refusal(error: OSError) -> str:
    """Say why the kernel does not run a machine."""
    if error.errno == errno.EAGAIN:  # of the thread that a VM's first KVM_RUN starts
        return (
            "the kernel had no task left for it: raise the limits (ulimit -u, the cgroup's "
            "pids.max), or end some"
        )
    return str(error)


def _room(peer: Peer, number: int) -> Status | None:
    """Return how a wait for room in a peer's queue is to be answered, or None if there is none."""
    entry = peer.table.get(number)
    if entry is None:
        return Status.E_PEER
    if not entry.peer.alive:
        return Status.E_DEAD
    return Status.OK if entry.peer.queue.takes(peer.number) else None

"""The driver: what happens between a machine's exit and its next entry.

It answers doorbells, delivers messages, parks who waits, and stops who cannot go on. Called by the
scheduler's workers; all but `execute` under the monitor's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.errors import GuestFault
from vmm.ferry.exchange import Exchange
from vmm.ferry.ledger import Refusal
from vmm.guest import abi
from vmm.guest.abi import Bell, Status
from vmm.kvm import Exit, Intr
from vmm.machine import Ending, Machine, State
from vmm.scheduler import Scheduler
from vmm.trace import Trace

Console = Callable[[str, str], None]


class Driver:
    """Acts on exits, for all machines of one monitor.

    console   called with a machine's name and a line that it logged
    """

    def __init__(
        self,
        exchange: Exchange,
        scheduler: Scheduler,
        trace: Trace,
        console: Console,
    ) -> None:
        self._exchange = exchange
        self._scheduler = scheduler
        self._trace = trace
        self._console = console

    def prepare(self, machine: Machine) -> None:
        """Deliver what waits for a machine, and answer the wait it was in."""
        pending = self._exchange.deliver(machine.peer) if machine.peer.queue else 0
        if machine.waiting:
            timed_out = not pending and machine.deadline is not None
            machine.guest.answer(Status.E_TIMEOUT if timed_out else Status.OK)
            machine.waiting, machine.deadline = False, None

    def execute(self, machine: Machine) -> Exit:
        """Run a machine until it exits. What the kernel refuses ends this machine, and no other."""
        try:
            return machine.guest.vcpu.run()
        except OSError as error:
            machine.ending = Ending("internal", str(error))
            return Intr()

    def handle(self, machine: Machine, exit_: Exit) -> None:
        """Act on an exit: a doorbell is answered, anything else but a kick stops the machine."""
        bell = machine.guest.bell(exit_)
        if self._trace:
            self._trace.emit("exit", machine=machine.name, exit=type(exit_).__name__, bell=bell)
        if machine.ending is not None:
            self.end(machine, machine.ending)
        elif bell is not None:
            self._answer(machine, bell)
        elif isinstance(exit_, Intr):
            machine.interrupted = False
        else:
            self._fail(machine, exit_)

    def _fail(self, machine: Machine, exit_: Exit) -> None:
        try:
            fault = machine.guest.explain(exit_)
        except OSError as error:  # it was to run once more, and the kernel refused
            fault = machine.guest.diagnosis.fault("internal", f"{exit_}, and then {error}")
        self._stop(machine, fault)

    def _answer(self, machine: Machine, bell: int) -> None:
        guest = machine.guest
        match bell:
            case Bell.TRANSMIT:
                guest.answer(self._exchange.transmit(machine.peer))
            case Bell.DIRECT:
                guest.answer(self._exchange.serve(machine.peer, guest.direct_request)[0])
            case Bell.WAIT:
                self._wait(machine)
            case Bell.TRANSMIT_WAIT:
                status = self._exchange.transmit(machine.peer)
                if status is Status.OK:
                    self._wait(machine)
                else:
                    guest.answer(status)
            case Bell.LOG:
                guest.answer(self._log(machine))
            case Bell.EXIT:
                machine.exit_code = guest.control.exit_code
                self._stop(machine, None)
            case Bell.PANIC:
                text = (guest.text() or b"").decode(errors="replace")
                reason = "panic: " + " ".join(_printable(text).split())
                self._stop(machine, guest.diagnosis.fault("panic", reason))
            case _:
                guest.answer(Status.E_BELL)

    def _wait(self, machine: Machine) -> None:
        guest = machine.guest
        try:
            guest.control.pending()
        except Refusal as refusal:  # an index that makes no sense would wait for ever
            guest.answer(refusal.status)
            return
        if self._exchange.deliver(machine.peer):
            guest.answer(Status.OK)
            return
        timeout_us = guest.control.wait_timeout_us
        if not timeout_us:
            guest.answer(Status.E_TIMEOUT)
            return
        machine.waiting = True
        self._scheduler.park(machine, None if timeout_us == abi.FOREVER else timeout_us / 1e6)

    def _log(self, machine: Machine) -> Status:
        text = machine.guest.text()
        if text is None:
            return Status.E_ADDRESS
        for line in text.decode(errors="replace").splitlines():
            self._console(machine.name, _printable(line))
        return Status.OK

    def end(self, machine: Machine, ending: Ending) -> None:
        """Stop a machine that is not running, with a fault that says why."""
        self._stop(machine, machine.guest.diagnosis.fault(*ending))

    def _stop(self, machine: Machine, fault: GuestFault | None) -> None:
        machine.state = State.STOPPED
        machine.fault = fault
        self._exchange.leave(machine.peer)
        if self._trace:
            self._trace.emit(
                "stop",
                machine=machine.name,
                exit_code=machine.exit_code,
                fault=None if fault is None else fault.as_json(),
            )


def _printable(text: str) -> str:
    """Replace what could steer a terminal: a guest's text is a guest's."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)

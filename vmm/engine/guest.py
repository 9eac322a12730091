"""One guest in its VM.

Descriptors, private memory and first state, made together and closed together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from vmm.engine.kick import drain, masked_while_running
from vmm.errors import GuestFault
from vmm.ferry.control import ControlStructure, Identity
from vmm.ferry.layout import CONTROL_BYTES
from vmm.ferry.message import Request
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status
from vmm.guest.blueprint import Blueprint
from vmm.guest.boot import Layout
from vmm.guest.image import Image
from vmm.guest.trap import Diagnosis
from vmm.kvm import Exit, Hypercall, Intr, IoOut, Kvm, MmioWrite
from vmm.kvm.uapi import KVM_CAP_EXIT_HYPERCALL
from vmm.memory.movers import PRIVATE_SLOT
from vmm.memory.private import PrivateMemory

DIAGNOSIS_SECONDS = 0.5  # enough on a host that has much else to do
HYPERCALLS = frozenset({abi.Doorbell.VMCALL, abi.Doorbell.VMMCALL})
_MASK64 = (1 << 64) - 1


class Asked(NamedTuple):
    """What a guest's own side asks of the driver, as an exit: a Linux program's, for example.

    exit_code   it ends with that
    fault       or it ends because of that
    parks       or it waits, until `until` on time.monotonic()'s clock, or for ever
    """

    exit_code: int | None = None
    fault: GuestFault | None = None
    parks: bool = False
    until: float | None = None


class Guest:
    """A VM with one vCPU, made after a blueprint and ready to be entered. Its window is not its
    business.

    enter   runs it until it exits
    last, last_bell   the last doorbell as an exit, if no hypercall has come since, and its value
    hypercall         the last exit, if it was one

    Thread-safety: run by any thread, one at a time. Close it when no thread runs it.
    """

    __slots__ = (
        "_blueprint",
        *(
            "control",
            "enter",
            "hypercall",
            "last",
            "last_bell",
            "memory",
            "name",
            "number",
            "vcpu",
            "vm",
        ),
    )

    _aligned = False  # whether its memory may have huge pages: it takes a call more

    def __init__(self, kvm: Kvm, blueprint: Blueprint, number: int, name: str) -> None:
        self.name = name
        self.number = number
        self._blueprint = blueprint
        self.hypercall: Hypercall | None = None
        self.last: MmioWrite | None = None
        self.last_bell = 0
        with contextlib.ExitStack() as undo:
            private = blueprint.layout.private
            self.memory = PrivateMemory(private, blueprint.template, aligned=self._aligned)
            undo.callback(self.memory.close)
            view = self.memory.view(abi.CONTROL_GPA, CONTROL_BYTES)
            self.control = ControlStructure(view, self._identity(number))
            undo.callback(self.control.release)
            self._prepare(undo)
            # A VM's first memslot right after it: later, where the processors are busy, it often
            # waits for the kernel for milliseconds (SRCU).
            self.vm = undo.enter_context(kvm.create_vm())
            self._attach()
            if blueprint.shape.doorbell in HYPERCALLS:
                self.vm.enable_cap(KVM_CAP_EXIT_HYPERCALL, 1 << abi.HYPERCALL)
            self.vcpu = undo.enter_context(self.vm.create_vcpu())
            self.vcpu.set_signal_mask(masked_while_running())
            blueprint.enter(self.vcpu)
            undo.pop_all()
        self.enter: Callable[[], Exit | Asked] = self.vcpu.run

    def _prepare(self, undo: contextlib.ExitStack) -> None:
        """Make what else there is to be shown; `undo` is for when no machine comes of it.

        Its variables become its own. It would read them first: then the page is there to be read
        only, and its first write a fault more, of whose mapping the kernel tells every VM.
        """
        for gpa, size in self._blueprint.written:
            self.memory.own(gpa, size)

    def _attach(self) -> None:
        """Show the machine its private memory."""
        private = self.layout.private
        self.vm.set_user_memory_region(PRIVATE_SLOT, 0, private.size, self.memory.address)

    def _identity(self, number: int) -> Identity:
        shape, layout = self._blueprint.shape, self.layout
        return Identity(
            machine=number,
            name=self.name,
            privilege=shape.privilege,
            doorbell=shape.doorbell,
            window_gpa=layout.window.base,
            window_pages=layout.window.pages,
            stack_gpa=layout.stack.base,
            stack_bytes=layout.stack.size,
        )

    @property
    def image(self) -> Image:
        """The program that it runs."""
        return self._blueprint.image

    @property
    def layout(self) -> Layout:
        """Where things lie in it."""
        return self._blueprint.layout

    @property
    def diagnosis(self) -> Diagnosis:
        """What tells why it has stopped."""
        return Diagnosis(self.name, self.vcpu, self.memory, self.layout, self.image.symbols)

    def takes(self, exit_: Exit | Asked) -> bool:
        """Whether an exit is dealt with when it is run again, and by itself."""
        return False

    def untold(self, *, ended: bool = False) -> list[Callable[[], object]]:
        """Return what is to be called, without the lock, to hand on what it has printed.

        ended   it will print no more
        """
        return []

    def tell(self) -> None:
        """What `untold` has returned will be called."""

    def bell(self, exit_: Exit | Asked) -> int | None:
        """Return the value of the doorbell that an exit is, or None if it is none."""
        if exit_ is self.last:  # the same object, as long as a guest rings the same bell
            return self.last_bell
        self.hypercall = None
        if type(exit_) is MmioWrite:
            if exit_.gpa == abi.DOORBELL_GPA and len(exit_.data) == 4:
                self.last, self.last_bell = exit_, int.from_bytes(exit_.data, "little")
                return self.last_bell
        elif type(exit_) is IoOut:
            if (exit_.port, exit_.size, exit_.count) == (abi.DOORBELL_PORT, 4, 1):
                return int.from_bytes(exit_.data, "little")
        elif type(exit_) is Hypercall and exit_.nr == abi.HYPERCALL:
            self.hypercall, self.last = exit_, None
            value = exit_.args[2]
            return abi.Bell.DIRECT if value & 0xFF == abi.Bell.DIRECT else value
        return None

    def direct_request(self) -> Request:
        """Return what a DIRECT doorbell asks for, read from its registers. Raises Refusal."""
        if self.hypercall is None:
            raise Refusal(Status.E_BELL)  # the value came by a doorbell that has no registers
        gpa, pages, attributes, *_ = self.hypercall.args
        return Request.from_registers(gpa, pages, attributes)

    def answer(self, status: Status) -> None:
        """Answer the last doorbell as a whole; a hypercall returns the status too."""
        self.control.bell_status(status)
        if self.hypercall is not None:
            self.vcpu.set_hypercall_result(status & _MASK64)

    def text(self) -> bytes | None:
        """Return the text that a LOG or PANIC names, or None if it is not in private memory."""
        gpa, length = self.control.log
        if length > abi.LOG_MAX:
            return None
        try:
            return self.memory.read(gpa, length)
        except IndexError:
            return None

    def explain(self, exit_: Exit, hold: Callable[[int], abi.Hold] | None = None) -> GuestFault:
        """Return why the guest cannot go on after an exit. It will not run again.

        It runs for half a second at most, if its thread is kicked now and then. `hold` tells
        what the page at an address of its window is to it.
        """
        limit = time.monotonic() + DIAGNOSIS_SECONDS
        return self.diagnosis.explain(exit_, lambda: self._run_on(limit), hold)

    def _run_on(self, limit: float) -> Exit:
        """Run until the guest exits by itself, or is kicked after the limit: a hostile one may make
        even its last instruction a loop.
        """
        while isinstance(exit_ := self.vcpu.run(), Intr) and time.monotonic() < limit:
            drain()  # else it would end the next run as well
        return exit_

    def close(self) -> None:
        """Close the vCPU, the VM and the memory, in that order. Further calls do nothing."""
        try:
            self.close_vm()
        finally:
            self.control.release()
            self._unmap()

    def close_vm(self) -> None:
        """Close the vCPU and the VM, as `close` does. Further calls do nothing."""
        try:
            self.vcpu.close()
        finally:
            self.vm.close()

    def _unmap(self) -> None:
        """Close what memory it has. Further calls do nothing."""
        self.memory.close()

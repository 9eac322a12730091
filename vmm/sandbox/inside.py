"""What is in the memory of a sandbox's machine between calls: read and written from here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from vmm.endpoint.arguments import contiguous
from vmm.errors import AccessError, ConfigError
from vmm.linux import outside
from vmm.linux.errors import SysError
from vmm.sandbox.crew import Crew, Ticket
from vmm.sandbox.handle import Handle
from vmm.sandbox.worker import Worker
from vmm.sizes import integer

T = TypeVar("T")

_ADDRESS_MOST = (1 << 64) - 1


class Inside:
    """The memory of a sandbox's machine: that of the task that the calling thread is in, or of the
    only one. Thread-safe; whoever reads or writes waits for a call that is under way.

    fresh    whether each call finds the machine as it was: then nothing is written between calls
    """

    def __init__(self, crew: Crew, fresh: bool) -> None:
        self._crew = crew
        self._fresh = fresh

    def read(self, address: Any, size: Any) -> bytes:
        """Return what is there. See Sandbox.read."""
        start, count = _at(address), integer(size, "size", 0, _ADDRESS_MOST)

        def act(worker: Worker) -> bytes:
            check(address, "read", worker)
            return read(worker, start, count, "read")

        return self.do("read", act)

    def write(self, address: Any, data: Any) -> None:
        """Write what is to be there. See Sandbox.write."""
        start = _at(address)
        copy = bytes(contiguous(data, "data"))

        def act(worker: Worker) -> None:
            check(address, "write", worker)
            self.put(worker, start, copy, "write")

        self.do("write", act)

    def put(self, worker: Worker, address: int, data: bytes, what: str) -> None:
        """Write to the memory of a worker's machine; `do` has called this."""
        if self._fresh and not worker.preparing:
            raise ConfigError(
                f"{what}: a machine of a fresh sandbox is put back after each call, and is only "
                "written to by an initializer: give a function what it is to have"
            )
        try:
            outside.write(worker.memory, address, data)
        except SysError:
            raise _no_access(what, address, len(data), "that it can write") from None

    def do(self, what: str, act: Callable[[Worker], T]) -> T:
        """Return what `act` makes of a machine that waits for calls. Raises ConfigError if it is
        not said of which, ClosedError, and what making a machine does.
        """
        crew = self._crew
        crew.check()
        if len(crew.workers) > 1 and not crew.binds:
            raise ConfigError(
                f"{what}: of which of {len(crew.workers)} machines? Do it within one function that "
                "is submitted to a Pool, with the calls that belong to it"
            )
        ticket = Ticket()
        try:
            try:
                worker = crew.take(ticket, what, math.inf)
                return worker.look(act)
            finally:
                crew.leave(ticket)
        finally:  # once more, should a signal's handler raise just there
            if not ticket.over:
                crew.leave(ticket)


def read(worker: Worker, address: int, size: int, what: str) -> bytes:
    """Return what is in the memory of a worker's machine."""
    try:
        return outside.read(worker.memory, address, size)
    except SysError:
        raise _no_access(what, address, size, "") from None


def check(address: Any, what: str, worker: Worker) -> None:
    """Raise HandleError for one of another machine."""
    if type(address) is Handle:
        address.check(what, worker.machine)


def _at(address: Any) -> int:
    if address is None:
        raise ConfigError("address is NULL, where nothing is")
    if type(address) is Handle:
        address.check("address")
    return integer(address, "address", 0, _ADDRESS_MOST)


def _no_access(what: str, address: int, size: int, rights: str) -> AccessError:
    whose = f"memory of the machine's own{rights and ' '}{rights}"
    return AccessError(f"{what}: {size} bytes at {address:#x} are not all {whose}")

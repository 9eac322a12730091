"""Buffers as files of a program: what it finds there are the host's own pages, lent to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from vmm.endpoint.arguments import wrong_type
from vmm.endpoint.buffer import Buffer, check_unviewed
from vmm.endpoint.host import HostEndpoint
from vmm.endpoint.refusals import refused
from vmm.endpoint.wholes import Undone, prepare, served
from vmm.errors import ConfigError, GuestError, LiveViewError
from vmm.ferry import carry
from vmm.ferry.message import Request
from vmm.ferry.rules import RULES
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Operation, Status
from vmm.linux.files.lent import Loan
from vmm.linux.files.offering import Offered
from vmm.linux.machine import LinuxMachine


class _File(NamedTuple):
    buffer: Buffer
    loan: Loan


class FileLoans:
    """The buffers among the files of a program that is to be made. All are lent, or none.

    files   what it is offered, with a content in each buffer's place; None if there is nothing
    """

    def __init__(
        self,
        host: HostEndpoint,
        files: Mapping[str, Offered | Buffer] | None,
        writable: Iterable[str],
    ) -> None:
        """`writable` are the paths of those that the program may write to.

        Raises ConfigError, ClosedError, and GuestError for what cannot be lent at present.
        """
        self._host = host
        self._files: list[_File] = []
        if isinstance(writable, str | bytes | bytearray | memoryview) or not isinstance(
            writable, Iterable
        ):
            raise wrong_type("writable_files", "a list of paths", writable)
        if files is not None and not isinstance(files, Mapping):
            raise wrong_type("files", "a mapping", files)
        wanted = {*map(str, writable)}
        self.files: Mapping[str, Offered] | None = None
        if files is not None:
            self.files = {name: self._offered(name, what, wanted) for name, what in files.items()}
        if wanted:
            raise ConfigError(f"writable_files: {wanted.pop()!r} is no buffer among the files")

    @property
    def size(self) -> int:
        """Bytes of all of them, in whole pages."""
        return sum(file.buffer.extent.pages for file in self._files) * PAGE_SIZE

    def __len__(self) -> int:
        return len(self._files)

    def _offered(self, name: str, what: Offered | Buffer, writable: set[str]) -> Offered:
        if not isinstance(what, Buffer):
            return what
        self._host._check_buffers([what])
        if any(what is file.buffer for file in self._files):
            raise ConfigError(f"{name}: the buffer is another file already: it can only be one")
        status = RULES[Operation.LEND, what.hold]
        if status is not Status.OK:
            raise refused(f"lend {name}", status)
        loan = Loan(what.size, writable=name in writable)
        writable.discard(name)
        self._files.append(_File(what, loan))
        return loan

    def lend(self, to: LinuxMachine, follow: Callable[[], object]) -> None:
        """Lend them to a machine that does not run yet, which finds no message of it. `follow` is
        called in the same turn. Raises GuestError, and nothing has changed then.
        """
        host, turns = self._host, self._host._turns
        parts = [*self._parts()]
        for part in parts:
            prepare(host, self._request(to, part))
        try:
            with turns.telling, turns.lock, turns.change:
                turns.journal.keep(to.peer)
                for part in parts:
                    self._lend(to, part)
                    host._follow(Operation.LEND, [file.buffer for file in part])
                follow()
        except Undone as undone:
            raise undone.why from None

    def take_back(self) -> None:
        """Take back those that have been lent, whatever becomes of the machine."""
        for buffer, _ in self._files:
            with contextlib.suppress(GuestError):
                self._host.reclaim(buffer)

    def _parts(self) -> Iterator[Sequence[_File]]:
        """Yield them as messages take them: alike, and so many at most."""
        for writable in (False, True):
            files = [file for file in self._files if file.loan.writable is writable]
            for start in range(0, len(files), EXTENTS_MAX):
                yield files[start : start + EXTENTS_MAX]

    def _request(self, to: LinuxMachine, part: Sequence[_File]) -> Request:
        extents = [file.buffer.extent for file in part]
        return Request(
            to.number,
            length=sum(extent.pages for extent in extents) * PAGE_SIZE,
            spans=carry.spans(self._host.peer.window, extents),
            operation=Operation.LEND,
            writable=part[0].loan.writable,
        )

    def _lend(self, to: LinuxMachine, part: Sequence[_File]) -> None:
        try:
            check_unviewed([file.buffer for file in part], self._host._journal)
        except LiveViewError as error:
            raise Undone(error) from None
        self._host._window.take_in([file.buffer.extent for file in part])
        status = served(self._host, partial(self._request, to, part)).status
        message = self._host._exchange.take(to.peer) if status is Status.OK else None
        if message is None:
            status = Status.E_NO_MEMORY if status is Status.OK else status
            raise Undone(refused(f"lend files to {to.name}", status))
        to.peer.received -= 1  # it has files, and finds no message
        window = to.guest.process.memory.window
        assert window is not None
        for file, place in zip(part, message.targets, strict=True):
            file.loan.bind(window, window.region.base + place.page * PAGE_SIZE)

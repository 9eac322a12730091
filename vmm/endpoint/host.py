"""The host endpoint: the Python process as a peer, with pages of its own to send and receive.

A `Buffer` is memory in the host's window. Sending it gives it away: from then on every use of it
is an error, as a guest's would be a fault; so is any use of one that is lent, until it comes back.
None is given away while a view of it is alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, SupportsIndex, TypeVar

from vmm.endpoint.arguments import check_machine, contiguous, flag, wrong_type
from vmm.endpoint.buffer import Buffer, check_unviewed, refresh
from vmm.endpoint.lending import Lending, take_back
from vmm.endpoint.refusals import none_left, refused
from vmm.endpoint.window import HostWindow
from vmm.engine.machine import Machine
from vmm.errors import ConfigError
from vmm.ferry import carry
from vmm.ferry.exchange import Exchange
from vmm.ferry.message import Answer, Message, Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.slices import MOMENT
from vmm.ferry.turns import Turns
from vmm.guest.abi import PAGE_SIZE, PAYLOAD_MAX, Operation, Status
from vmm.memory.frames import LARGE
from vmm.memory.runs import Extent
from vmm.sizes import integer, pages_for, parse_size

if TYPE_CHECKING:
    from typing_extensions import Buffer as Bytes  # whatever has the buffer protocol

_TAG_MAX = (1 << 64) - 1
# What takes pages from the host, or gives it others.
_TAKES = frozenset(
    {Operation.SEND, Operation.EXCHANGE, Operation.LEND, Operation.RETURN, Operation.RELEASE}
)

T = TypeVar("T")


class Received(NamedTuple):
    """A message that the host has taken from its queue.

    operation SEND, LEND, SHARE or RETURN; UNDELIVERED if it is the host's own, come back
    sender    the id of the machine, as the monitor stamped it
    status    OK; otherwise why it came back
    buffers   its pages, one buffer per extent; the last one's size is what is left of `length`.
              What had been lent or shared comes back as the very Buffers that it was, if only
              a page of them; not at all, if the host has released or sent it since
    """

    operation: Operation
    sender: int
    tag: int
    status: Status
    length: int
    payload: bytes
    buffers: tuple[Buffer, ...]


class HostEndpoint:
    """Allocates, sends and receives on behalf of the host process. Made by the monitor.

    Every method raises ClosedError once the monitor is closed; TypeError or ConfigError, at the
    call, for arguments that cannot be meant, such as a machine or a buffer of another monitor; and
    GuestError, which names the status, for what a guest would be refused too. Nothing has changed
    then.

    payload   of at most 192 bytes: bytes, or anything else that has the buffer protocol and is
              contiguous; copied at the call
    tag       an int of 64 bits

    Thread-safety: every method takes the monitor's lock.
    """

    def __init__(self, peer: Peer, exchange: Exchange, turns: Turns) -> None:
        self.peer = peer
        self.lock = turns.lock
        self._turns = turns
        self._journal = turns.journal
        self._exchange = exchange
        self._window = HostWindow(peer, exchange, turns)
        self._parted: dict[Extent, Buffer] = {}  # that were lent or shared, and are the host's

    def __reduce__(self) -> NoReturn:
        raise TypeError("a HostEndpoint cannot be copied or pickled")

    # ---- Buffers ----

    def alloc(self, size: SupportsIndex | str, *, huge: bool = False) -> Buffer:
        """Return zeroed pages for `size` bytes: an int, or text such as "4M".

        huge   whether they are to be whole huge pages, of 2 MiB, where this host gives any: who
               gets them has one fault for each, where 4 KiB pages would cost it as many as it
               touches. All of these pages are the buffer's, and go where it goes

        Raises ResourceError, which says why, if they are not to be had; ConfigError if that is no
        size.
        """
        count = parse_size(size, "buffer size")
        unit = LARGE if flag(huge, "huge") else 1
        return self._alloc(count, -(-pages_for(count) // unit) * unit)

    def _alloc(
        self, count: int, pages: int = 0, store: Callable[[Buffer | None], object] | None = None
    ) -> Buffer:
        """Return zeroed pages for `count` bytes, and more of them if `pages` says so.

        store    called with the buffer in the turn that gets it, and with None if that is undone:
                 so that nothing is lost, wherever this is cut off
        """
        pages = max(pages, pages_for(count))
        request = Request(spans=(Span(0, pages),), operation=Operation.ALLOC)

        def follow(answer: Answer) -> Buffer:
            if answer.status is not Status.OK:
                ledger, number = self._exchange.ledger, self.peer.number
                raise none_left(ledger, number, answer.status, count, pages)
            made = Buffer(self._window, self._window.extent(*answer.spans[0]), count)
            if store is not None:
                self._journal.undo(partial(store, None))
                store(made)
            return made

        return self._serve(lambda: request, follow)

    def _serve(self, read: Callable[[], Request], follow: Callable[[Answer], T]) -> T:
        """Have done what is asked for, in slices: others may have the lock in between. `follow` is
        called with the answer, in the same turn.
        """
        while True:
            with self._turns.telling, self._turns.lock, self._turns.change:
                answer = self._exchange.serve(self.peer, read)
                if answer is not None:
                    return follow(answer)
            time.sleep(MOMENT)

    def _clean(self) -> None:
        """Zero what has been freed, in slices."""
        while self._exchange.ledger.pool.unclean:
            with self._turns.telling, self._turns.lock, self._turns.change:
                if not self._exchange.slices.chores():
                    break
            time.sleep(MOMENT)

    def release(self, buffer: Buffer) -> None:
        """Give a buffer's pages back to the pool, or let go of one that was reclaimed.

        Raises ClosedError if it is not the host's, GuestError if it is lent or borrowed.
        """
        self._ask("release it", Operation.RELEASE, [buffer])

    # ---- Operations ----

    def send(
        self,
        to: Machine,
        *buffers: Buffer | None,
        payload: Bytes = b"",
        tag: SupportsIndex = 0,
    ) -> int:
        """Send buffers, or a payload of at most 192 bytes, or both; return the message's number.

        The buffers are no longer the host's afterwards. Raises GuestError with the refusal's
        status, and then they still are: E_DEAD if the machine has stopped.
        """
        given = [buffer for buffer in buffers if buffer is not None]
        return self._tell("send to", Operation.SEND, to, given, payload, tag)

    def exchange(
        self, to: Machine, *buffers: Buffer, payload: Bytes = b"", tag: SupportsIndex = 0
    ) -> int:
        """Send what is in buffers; they are zeroed, and the host's, at once."""
        return self._tell("exchange with", Operation.EXCHANGE, to, buffers, payload, tag)

    def lend(
        self,
        to: Machine,
        *buffers: Buffer,
        writable: bool = True,
        payload: Bytes = b"",
        tag: SupportsIndex = 0,
    ) -> Lending:
        """Lend buffers; they cannot be used until they come back (`receive`, or `reclaim`).

        With `with` they are back at the end of the block.
        """
        number = self._tell("lend to", Operation.LEND, to, buffers, payload, tag, writable)
        return Lending.of(number, partial(take_back, self._window, self._serve, buffers))

    def share(
        self,
        to: Machine,
        *buffers: Buffer,
        writable: bool = False,
        payload: Bytes = b"",
        tag: SupportsIndex = 0,
    ) -> Lending:
        """Let a machine see buffers that stay the host's; read-only, if nothing else is said.

        Shared again with others, all of them see the same pages. Views may be alive, but what
        another thread writes during this call may be lost. With `with` nobody sees them any more at
        the end of the block.
        """
        number = self._tell("share with", Operation.SHARE, to, buffers, payload, tag, writable)
        return Lending.of(number, partial(take_back, self._window, self._serve, buffers))

    def give_back(self, *buffers: Buffer, payload: Bytes = b"", tag: SupportsIndex = 0) -> int:
        """Return buffers that are borrowed of one machine to it; they are not the host's any more.

        Raises GuestError: E_RECLAIMED if it has taken them back meanwhile; `release` them then.
        """
        self._check_buffers(buffers)
        with self._turns.telling, self._turns.lock, self._turns.change:
            owners = [self._window.describe(buffer.extent).owner for buffer in buffers]
        owner = owners[0] if owners and owners[0] is not None else self.peer.number
        return self._ask("give it back", Operation.RETURN, buffers, owner, payload, tag).number

    def reclaim(self, *buffers: Buffer) -> None:
        """Take lent or shared buffers back from all who borrow them, whatever they are doing."""
        self._ask("reclaim it", Operation.RECLAIM, buffers)

    def _tell(
        self,
        what: str,
        operation: Operation,
        to: Machine,
        buffers: Sequence[Buffer],
        payload: Bytes,
        tag: SupportsIndex,
        writable: bool = True,
    ) -> int:
        check_machine(to, "to", self._exchange)
        what, writable = f"{what} {to.name}", flag(writable, "writable")
        return self._ask(what, operation, buffers, to.number, payload, tag, writable).number

    def _ask(
        self,
        what: str,
        operation: Operation,
        buffers: Sequence[Buffer],
        receiver: int = 0,
        payload: Bytes = b"",
        tag: SupportsIndex = 0,
        writable: bool = True,
    ) -> Answer:
        self._check_buffers(buffers)
        word = integer(tag, "tag", 0, _TAG_MAX)
        inline = contiguous(payload, "payload")
        if len(inline) > PAYLOAD_MAX:
            why = f"payload has {len(inline)} bytes, of at most {PAYLOAD_MAX}: use a buffer"
            raise refused(what, Status.E_LENGTH, why)
        copied = bytes(inline)
        del inline  # which may be a view of a buffer that is to go

        def read() -> Request:
            extents = [buffer.extent for buffer in buffers]
            spans = carry.spans(self.peer.window, extents)
            if operation in _TAKES:
                check_unviewed(buffers, self._journal)
            self._window.take_in(extents)
            length = sum(span.pages for span in spans[:-1]) * PAGE_SIZE
            length += buffers[-1].size if buffers else 0
            return Request(receiver, word, length, spans, copied, operation, writable)

        def follow(answer: Answer) -> Answer:
            if answer.status is Status.OK:
                self._follow(operation, buffers)
            refresh(buffers)
            return answer

        answer = self._serve(read, follow)
        self._clean()
        if answer.status is not Status.OK:
            raise refused(what, answer.status)
        return answer

    def _check_buffers(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            if not isinstance(buffer, Buffer):
                raise wrong_type("buffer", "a vmm.Buffer (bytes go as payload=)", buffer)
            if buffer._window is not self._window:
                raise ConfigError("buffer is of another monitor: copy what is in it")

    def _follow(self, operation: Operation, buffers: Sequence[Buffer]) -> None:
        self._journal.undo(
            partial(self._have, self._parted.copy(), [(b, b.extent) for b in buffers])
        )
        if operation in (Operation.LEND, Operation.SHARE):
            self._parted.update({buffer.extent: buffer for buffer in buffers})
        elif operation in (Operation.SEND, Operation.RETURN, Operation.RELEASE):
            for buffer in buffers:
                self._parted.pop(buffer._give_up(), None)

    def _have(self, parted: dict[Extent, Buffer], buffers: list[tuple[Buffer, Extent]]) -> None:
        """Know again what was known before an operation that has been undone."""
        self._parted = parted.copy()
        for buffer, extent in buffers:
            buffer._come_back(extent)

    def receive(self) -> Received | None:
        """Return the oldest message for the host, its pages mapped, or None if there is none."""
        with self._turns.telling, self._turns.lock, self._turns.change:
            while self.peer.queue:
                message = self._exchange.take(self.peer)
                if message is None:
                    continue
                buffers = tuple(self._buffers(message))
                return Received(
                    message.operation,
                    message.sender,
                    message.tag,
                    message.status,
                    message.length,
                    message.payload,
                    buffers,
                )
        return None

    def _buffers(self, message: Message) -> Iterator[Buffer]:
        """Yield the buffers of a message, each once: those that have come back, or new ones."""
        length, back = message.length, dict[Extent, Buffer]()
        for extent in (self._window.extent(*span) for span in message.spans):
            own = self._come_back(message.operation, extent)
            yield from (buffer for e, buffer in own.items() if e not in back)
            back |= own
            size = min(length, extent.pages * PAGE_SIZE)
            length -= size
            if not own and message.operation is not Operation.RETURN:
                yield Buffer(self._window, extent, size)

    def _come_back(self, operation: Operation, extent: Extent) -> dict[Extent, Buffer]:
        """Return the buffers that were lent or shared, and have a page of what comes back."""
        if operation not in (Operation.RETURN, Operation.UNDELIVERED):
            return {}
        if extent in self._parted:
            return {extent: self._parted[extent]}
        found = sorted(e for e in self._parted if e.overlaps(extent))
        return {e: self._parted[e] for e in found}

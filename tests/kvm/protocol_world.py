"""The real side of the protocol's model: machines on the device, and the host."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from kvm.protocol_hand import Hand, descriptor_of, told
from kvm.protocol_pages import Chosen, Message, Spans, Wish, places_in
from kvm.puppets import spans_of

from vmm import Monitor
from vmm.endpoint import Buffer
from vmm.errors import AccessError, ClosedError, GuestError, ResourceError
from vmm.ferry.message import Message as RealMessage
from vmm.ferry.peer import Peer
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory.mapping import Mapping
from vmm.memory.runs import Extent

HOST = abi.PEER_HOST
_PATIENCE = 60
_SIZE = 8  # bytes of a word


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a wish was answered; `spans` are ALLOC's, `payload` is QUERY's."""

    status: Status
    number: int = 0
    spans: Spans = dataclasses.field(default_factory=list)
    payload: bytes = b""


class World:
    """A monitor, its machines by number, dead and removed ones too, and the host's buffers."""

    def __init__(self, mover: str, frames: int, copy_below: int) -> None:
        self.monitor = Monitor(
            mover=mover,
            pool=frames * PAGE_SIZE,
            copy_below=copy_below,
            audit=True,
            console=lambda name, line: None,
        )
        self.frames = frames
        self.moves = 0  # of the kernel's, at the last check
        self.ledger = self.monitor._exchange.ledger
        self.view = Mapping.shared(frames * PAGE_SIZE, self.monitor._mover.pool.fd)
        self.hands: dict[int, Hand] = {}
        self.removed: set[int] = set()
        self.buffers: list[Buffer] = []

    def spawn(self, quota: int, depth: int) -> Hand:
        name = f"m{len(self.hands) + 1}"
        hand = Hand(self.monitor, name, memory="3M", quota=quota * PAGE_SIZE, queue=depth)
        self.hands[hand.number] = hand
        return hand

    def end(self, number: int, how: str) -> None:
        """Kill or remove a machine that waits."""
        getattr(self.monitor, how)(self.hands[number].machine)
        if how == "remove":
            self.removed.add(number)
        self.run()

    def peer(self, number: int) -> Peer:
        return self.hands[number].machine.peer if number else self.monitor.host.peer

    def run(self) -> None:
        self.monitor.run(_PATIENCE)

    # ---- Wishes ----

    def ask(self, number: int, wishes: Sequence[Wish]) -> list[Answer]:
        """Let a peer ask for all of these at once; the host for one."""
        if number == HOST:
            (wish,) = wishes
            return [self._ask_host(wish)]
        hand = self.hands[number]
        answers = hand.ask(*[descriptor_of(wish, hand.base) for wish in wishes])
        return [
            Answer(
                Status(answer.status),
                answer.message,
                self.places_of(number, spans_of(answer))
                if wish.operation == Operation.ALLOC and answer.status == Status.OK
                else [],
                bytes(answer.payload),
            )
            for wish, answer in zip(wishes, answers, strict=True)
        ]

    def places_of(self, number: int, spans: Iterable[tuple[int, int]]) -> Spans:
        """Return extents of a peer's window, given by address."""
        base = self.peer(number).window.region.base
        return [((gpa - base) // PAGE_SIZE, pages) for gpa, pages in spans]

    def buffers_of(self, wish: Wish) -> list[Buffer]:
        by_extent = {buffer.extent: buffer for buffer in self.buffers}
        return [by_extent[Extent(*extent)] for extent in wish.extents]

    def _ask_host(self, wish: Wish) -> Answer:
        try:
            return self._call_host(wish)
        except (GuestError, ResourceError) as error:
            return Answer(Status[re.findall(r"E_[A-Z_]+", str(error))[0]])
        finally:
            self.buffers = [buffer for buffer in self.buffers if buffer._extent is not None]
            self.run()  # who has been told of something runs

    def _call_host(self, wish: Wish) -> Answer:
        host = self.monitor.host
        if wish.operation == Operation.ALLOC:
            (count,) = wish.counts
            self.buffers.append(host.alloc(count * PAGE_SIZE))
            return Answer(Status.OK, spans=[tuple(self.buffers[-1].extent)])
        buffers, about = self.buffers_of(wish), {"payload": wish.payload, "tag": wish.tag}
        if wish.operation == Operation.RELEASE:
            (buffer,) = buffers
            host.release(buffer)
        elif wish.operation == Operation.RECLAIM:
            host.reclaim(*buffers)
        elif wish.operation == Operation.RETURN:
            return Answer(Status.OK, host.give_back(*buffers, **about))
        else:
            to = self.hands[wish.receiver].machine
            if wish.operation in (Operation.LEND, Operation.SHARE):
                about["writable"] = wish.writable
            call = getattr(host, Operation(wish.operation).name.lower())
            return Answer(Status.OK, call(to, *buffers, **about))
        return Answer(Status.OK)

    def chosen(self, number: int, wish: Wish, answer: Answer) -> Chosen:
        """Return what the ledger chose for a wish that has been done."""
        spans, homes, fresh, gone = answer.spans, [], answer.spans, []
        if wish.operation in (Operation.SEND, Operation.LEND, Operation.SHARE, Operation.EXCHANGE):
            message = self.message(wish.receiver, answer.number)
            spans = self.places_of(wish.receiver, message.spans)
            homes = [tuple(home) for home in message.homes]
            fresh = wish.extents if wish.operation == Operation.EXCHANGE else []
            if fresh:
                there = self.window(wish.receiver)
                gone = [there[place][0] for place in places_in(spans)]
        window = self.window(number) if fresh else {}
        frames = {p: window[p][0] for first, n in fresh for p in range(first, first + n)}
        return Chosen(answer.number, spans, homes, frames, gone)

    def message(self, receiver: int, number: int, operation: int | None = None) -> RealMessage:
        """Return a message that a peer has not taken yet."""
        peer = self.peer(receiver)
        return next(
            m
            for m in (*peer.queue, *peer.untaken)
            if m.number == number and operation in (None, m.operation)
        )

    def came_back(self, message: Message) -> Spans:
        """Return where a message's pages are in its sender's window again."""
        back = self.message(message.sender, message.number, Operation.UNDELIVERED)
        return self.places_of(message.sender, back.spans)

    def receive(self, number: int, count: int) -> list[tuple[object, ...]]:
        """Let a peer take messages; return what it can tell of each."""
        if number != HOST:
            return [
                told(taken, self.hands[number].base) for taken in self.hands[number].take(count)
            ]
        got = []
        for _ in range(count):
            message = self.monitor.host.receive()
            if message is None:
                break
            usable = [buffer for buffer in message.buffers if buffer._extent is not None]
            self.buffers += [buffer for buffer in usable if buffer not in self.buffers]
            got.append((*message[:6], [tuple(buffer.extent) for buffer in usable]))
        return got

    # ---- Memory, as each peer reaches it ----

    def gather(self, wanted: dict[int, list[int]]) -> dict[int, list[int]]:
        """Let peers read the words at places of their windows, all that are machines at once."""
        hands = [self.hands[number] for number in wanted if number != HOST]
        for hand in hands:
            hand.begin_to_gather(wanted[hand.number])
        if hands:
            self.run()
        found = {}
        for hand in hands:
            hand.done()
            found[hand.number] = hand.words(wanted[hand.number])
        if HOST in wanted:
            read = [self.host_page(place).read(0, _SIZE) for place in wanted[HOST]]
            found[HOST] = [int.from_bytes(word, "little") for word in read]
        return found

    def scatter(self, number: int, words: dict[int, int]) -> None:
        if number != HOST:
            self.hands[number].scatter(words)
            return
        for place, word in words.items():
            self.host_page(place).write(word.to_bytes(_SIZE, "little"))

    def host_page(self, place: int) -> Buffer:
        return Buffer(self.monitor.host._window, Extent(place, 1), PAGE_SIZE)

    def host_may(self, place: int, access: str) -> bool:
        try:
            page = self.host_page(place)
            page.read() if access == "read" else page.write(b"x")
        except (AccessError, ClosedError):
            return False
        return True

    def window(self, number: int) -> dict[int, tuple[int, Hold]]:
        """Return what the ledger says that a window holds."""
        return {
            run.page + i: (run.frame + i, run.hold)
            for run in self.ledger.window(number)
            for i in range(run.pages)
        }

    def close(self) -> None:
        self.view.close()
        self.monitor.close()

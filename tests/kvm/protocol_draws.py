"""What happens next to the protocol's machines: mostly what may be done, often what may not."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from kvm.protocol_model import Model
from kvm.protocol_pages import FOREIGN, SEEN, TRANSFERS, Member, Spans, Wish, places_in, spans_of
from kvm.protocol_world import HOST, World

from vmm.guest.abi import PAGE_SIZE, PAYLOAD_MAX, Hold, Operation

T = TypeVar("T")

_LIKELY = {
    Operation.SEND: {Hold.OWNED},
    Operation.EXCHANGE: {Hold.OWNED},
    Operation.LEND: {Hold.OWNED},
    Operation.SHARE: {Hold.OWNED, Hold.SHARED},
    Operation.RETURN: FOREIGN,
    Operation.RECLAIM: {Hold.LENT, Hold.SHARED},
    Operation.RELEASE: {Hold.OWNED, Hold.REVOKED},
}


@dataclasses.dataclass(eq=False)
class Role:
    """What a machine is in a world, and its successor when it has died."""

    quota: int
    depth: int
    number: int = -1


class Draws:
    """Choices among what there is."""

    OPERATIONS: ClassVar[list[Operation]] = sorted(_LIKELY)
    PLAIN: ClassVar[list[Operation]] = sorted(_LIKELY.keys() - {Operation.EXCHANGE})

    def __init__(self, rng: random.Random, model: Model, world: World) -> None:
        self._rng = rng
        self._model = model
        self._world = world
        self.one_of = rng.choice
        self.up_to = functools.partial(rng.randint, 0)

    def one_in(self, times: int) -> bool:
        return self._rng.randrange(times) == 0

    # ---- Who ----

    def _awake(self) -> list[Member]:
        return [member for member in self._model.living() if not member.asleep]

    def _preferred(self, fitting: list[Member], others: list[Member]) -> int:
        members = fitting if fitting and not self.one_in(10) else others
        return self._acting([member.number for member in members])

    def _acting(self, numbers: list[int]) -> int:
        """Choose who is to act: before it does, it gets its messages."""
        number = self.one_of(numbers)
        if number != HOST:
            self._model.enter(number)
        return number

    def machine(self) -> int:
        """Choose a machine that is awake; one is woken, if need be."""
        machines = [member.number for member in self._awake() if member.number != HOST]
        if not machines:
            sleeper = self._model.living()[1]
            sleeper.asleep, machines = False, [sleeper.number]
        return self._acting(machines)

    def any_machine(self) -> int:
        return self.one_of([member.number for member in self._model.living()[1:]])

    def actor_with(self, holds: set[Hold]) -> int:
        """Choose a peer that is awake, and probably has such pages."""
        awake = self._awake()
        return self._preferred([member for member in awake if member.with_hold(holds)], awake)

    def actor(self, operation: Operation | None = None) -> int:
        return self.actor_with(set() if operation is None else _LIKELY[operation])

    def actor_with_messages(self) -> int:
        awake = self._awake()
        return self._preferred([m for m in awake if m.ring or m.queue], awake)

    def operation(self) -> Operation:
        """Choose an operation for which, most often, there is somebody with fitting pages."""
        for _ in range(4):
            operation = self.one_of(self.OPERATIONS)
            if any(member.with_hold(_LIKELY[operation]) for member in self._awake()):
                break
        return operation

    # ---- Which pages ----

    def some(self, places: Sequence[int], most: int) -> list[int]:
        if not places:
            return []
        return self._rng.sample(places, self._rng.randint(1, min(most, len(places))))

    def _extents(self, number: int, fitting: list[int]) -> Spans:
        """One to three disjoint extents, mostly of these places, now and then beside them."""
        stretches, found = spans_of(fitting), list[tuple[int, int]]()
        for _ in range(self.one_of([1, 1, 2, 3])):
            if not stretches or self.one_in(12):
                first, pages = self.up_to(12), self.one_of([1, 2])
            else:
                first, most = self.one_of(stretches)
                skipped = self.up_to(min(most, 6) - 1)
                whole = most - skipped + self.one_in(12)
                pages = self.one_of([1, 2, 3, 5, whole])
                first, pages = first + skipped, min(pages, whole)
            pages = min(pages, self._model.members[number].pages - first)
            if not set(places_in([(first, pages)])) & set(places_in(found)):
                found.append((first, pages))
        return found

    def _buffers(self, fitting: list[int], most: int) -> Spans:
        """One to three of the host's buffers."""
        extents = sorted({tuple(buffer.extent) for buffer in self._world.buffers})
        likely = [extent for extent in extents if extent[0] in fitting]
        return self.some(likely if likely and not self.one_in(8) else extents, most)

    def forbidden(self) -> tuple[int, int | None, str]:
        """Choose who does what it may not: a peer, a place of its window, and the access.

        None if it may do that everywhere.
        """
        awake, holds = self._awake(), [*[Hold.VIEWED] * 2, Hold.LENT, Hold.SENT, Hold.REVOKED]
        found = [hold for hold in holds if any(member.with_hold({hold}) for member in awake)]
        hold = self.one_of([*found, Hold.NONE])
        number = self.actor_with({hold})
        member, access = self._model.members[number], self.one_of(["read", "write"])
        access = "write" if hold is Hold.VIEWED else access
        usable = set(member.with_hold(SEEN - {Hold.VIEWED} if access == "write" else SEEN))
        others = [place for place in range(member.pages) if place not in usable]
        places = member.with_hold({hold}) or others
        return number, self.one_of(places) if places else None, access

    # ---- What ----

    def alloc(self, number: int) -> Wish:
        counts = [1 + self.up_to(4) for _ in range(1 if number == HOST else 1 + self.up_to(2))]
        if self.one_in(8):
            counts = [self.one_of([20, 35, 90, 600])]
        return Wish(Operation.ALLOC, spans=tuple((0, count) for count in counts))

    def query(self, number: int) -> Wish:
        places = sorted(self._model.members[number].places)
        extents = self._extents(number, places)[: self.one_of([0, 1, 1, 1])]
        return Wish(Operation.QUERY, spans=_spans(extents))

    def wish(self, number: int, operation: Operation) -> Wish:
        member = self._model.members[number]
        fitting = member.with_hold(_LIKELY[operation])
        receiver = 0
        if operation is Operation.RETURN:
            fitting, receiver = self._of_one_owner(member, fitting)
        elif operation in TRANSFERS:
            receiver = self._receiver(member)
        if number == HOST:
            return self._host_wish(operation, fitting, receiver)
        extents = self._extents(number, fitting)
        pages = sum(pages for _, pages in extents)
        return Wish(
            operation,
            receiver,
            _spans(extents),
            operation not in (Operation.LEND, Operation.SHARE) or self.one_of([True, False]),
            self.up_to((1 << 64) - 1),
            self.up_to(pages * PAGE_SIZE),
            self._payload(operation),
        )

    def _payload(self, operation: Operation) -> bytes:
        if operation not in (*TRANSFERS, Operation.RETURN):
            return b""
        return self.one_of([b"", b"", b"x", b"payload", bytes(PAYLOAD_MAX)])

    def _receiver(self, member: Member) -> int:
        """Mostly who can be reached; else the dead, strangers, itself, nobody."""
        reachable = [n for n in sorted(member.channels) if self._model.members[n].alive]
        if reachable and not self.one_in(10):
            return self.one_of(reachable)
        others = sorted(self._model.members) if member.number != HOST else sorted(member.channels)
        return self.one_of(others if member.number == HOST else [*others, 999])

    def _of_one_owner(self, member: Member, fitting: list[int]) -> tuple[list[int], int]:
        owners = sorted({member.places[place].owner for place in fitting})
        if not owners:
            return fitting, 0
        owner = self.one_of(owners)
        if not self.one_in(8):
            fitting = [place for place in fitting if member.places[place].owner == owner]
        return fitting, owner

    def _host_wish(self, operation: Operation, fitting: list[int], receiver: int) -> Wish:
        """The host names buffers, and has the owner found whose they are."""
        extents = self._buffers(fitting, 1 if operation is Operation.RELEASE else 3)
        if not extents:
            return self.alloc(HOST)
        wish = Wish(operation, receiver, _spans(extents), self.one_of([True, False]))
        sizes = [buffer.size for buffer in self._world.buffers_of(wish)]
        *pages, _ = [pages * PAGE_SIZE for _, pages in extents]
        if operation is Operation.RETURN:
            host, place = self._model.members[HOST], wish.places[0]
            borrowed = host.hold(place) in FOREIGN
            wish = wish._replace(receiver=host.places[place].owner if borrowed else HOST)
        if operation not in (Operation.LEND, Operation.SHARE):
            wish = wish._replace(writable=True)
        if operation in (*TRANSFERS, Operation.RETURN):
            wish = wish._replace(payload=self._payload(operation), tag=self.one_of([0, 7]))
        return wish._replace(length=sum(pages) + sizes[-1])

    def nonsense(self, number: int) -> Wish:
        """A wish that a descriptor can express, with something wrong in it."""
        operation = self.one_of(self.PLAIN)
        wish = self.wish(number, operation)
        if not wish.spans:
            return wish._replace(reserved=0x10)
        (at, pages), *others = wish.spans
        window = self._model.members[number].pages
        wrong = [
            wish._replace(spans=((at + 8, pages), *others)),
            wish._replace(spans=((at, 0), *others)),
            wish._replace(spans=((-PAGE_SIZE, 1), *others)),
            wish._replace(spans=(((window - 1) * PAGE_SIZE, 2), *others)),
            wish._replace(spans=((at, (1 << 32) - 1), *others)),
            wish._replace(spans=((at, pages), (at + (pages - 1) * PAGE_SIZE, 2))),
            wish._replace(spans=()),
            wish._replace(length=sum(wish.counts) * PAGE_SIZE + 1),
            wish._replace(reserved=self.one_of([2, 0x8000])),
            wish._replace(operation=self.one_of([0, 10, 128, 65535])),
            Wish(Operation.ALLOC, spans=((at + PAGE_SIZE, 1),)),
            Wish(Operation.ALLOC, spans=((0, 1), (0, 0))),
            Wish(Operation.SEND, wish.receiver, reserved=1),
        ]
        return self.one_of(wrong)


def _spans(extents: Spans) -> tuple[tuple[int, int], ...]:
    return tuple((first * PAGE_SIZE, pages) for first, pages in extents)

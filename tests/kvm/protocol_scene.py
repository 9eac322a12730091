"""The protocol's model and the real machines side by side: all is done with both, and compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from kvm.protocol_checks import check_books, check_memory, check_tables
from kvm.protocol_draws import Role
from kvm.protocol_model import Model
from kvm.protocol_pages import SEEN, Member, Message, Wish, places_in
from kvm.protocol_world import HOST, World

from vmm.guest import abi
from vmm.guest.abi import Flags, Hold, Operation, Status

ROLES = ((512, 64), (24, 3), (12, 64), (512, 5))  # quota in pages, messages in its queue


class Scene:
    """One world with its model.

    count   called with what has been done
    """

    def __init__(
        self, mover: str, frames: int, copy_below: int, count: Callable[[str], object]
    ) -> None:
        self.count = count
        self.words = itertools.count(1)  # to write: none of them twice
        self.concerned: set[int] = set()  # peers that are to look, after this step
        self.world, self.model = World(mover, frames, copy_below), Model(frames)
        self.model.members[HOST] = Member(HOST, frames, frames, 1 << 30)
        self.roles = [Role(quota, depth) for quota, depth in ROLES]

    # ---- Births ----

    def vacant(self) -> list[Role]:
        alive = {member.number for member in self.model.living()}
        return [role for role in self.roles if role.number not in alive]

    def join(self, role: Role) -> None:
        """A machine takes a role."""
        hand, model = self.world.spawn(role.quota, role.depth), self.model
        number = role.number = hand.number
        model.members[number] = Member(number, hand.machine.window.pages, role.quota, role.depth)
        model.connect(HOST, number)
        model.connect(number, HOST)
        for a, b in itertools.permutations(range(len(self.roles)), 2):
            if role in (self.roles[a], self.roles[b]):
                self._connect(a, b, role)
        hand.boot()

    def _connect(self, a: int, b: int, new: Role) -> None:
        """Of roles 0 and 3 only the first may send to the other; 2 and 3 do not know each other."""
        pair = self.roles[a], self.roles[b]
        if {a, b} == {2, 3} or (a, b) == (3, 0) or any(role in self.vacant() for role in pair):
            return
        first, second = (self.world.hands[role.number].machine for role in pair)
        self.world.monitor.connect(first, second, both=False)
        self.model.connect(first.number, second.number)
        for role in pair:
            if role is not new:
                self.entered(role.number)  # it is told that there is somebody new

    # ---- Wishes ----

    def ask(self, number: int, *wishes: Wish) -> list[str]:
        """Let a peer ask, and compare the answers; what is refused has changed nothing.

        Return what was asked, and answered.
        """
        answers = self.world.ask(number, wishes)
        woken: set[int] = set()
        for wish, answer in zip(wishes, answers, strict=True):
            reasons = self.model.reasons(number, wish)
            self.count(f"{_name(wish.operation)} {answer.status.name}")
            assert answer.status in (reasons or {Status.OK}), f"{number}: {wish}: {reasons}"
            if answer.status is not Status.OK:
                continue
            if wish.operation == Operation.QUERY:
                self._check_answer(number, wish, abi.Answer.from_buffer_copy(answer.payload))
            else:
                woken |= self.model.do(number, wish, self.world.chosen(number, wish, answer))
        for peer in (number, *woken):
            self.entered(peer)
        return [
            f"peer {number}: {_name(wish.operation)} to {wish.receiver} of {wish.spans}"
            f"{'' if wish.writable else ', read-only'}: {answer.status.name}"
            for wish, answer in zip(wishes, answers, strict=True)
        ]

    def _check_answer(self, number: int, wish: Wish, answer: abi.Answer) -> None:
        assert answer.pages_held == self.model.charged(number)
        assert answer.pages_quota == self.model.members[number].quota
        assert answer.pieces_held == len(self.world.ledger.account(number).window)
        assert answer.pool_free == self.model.total - len(self.model.pages)
        if wish.spans:
            assert 1 <= answer.pages <= wish.spans[0][1]
            borrowers = tuple(answer.borrowers[: answer.borrower_count])
            for place in wish.places[: answer.pages]:
                found = Hold(answer.hold), answer.owner, borrowers
                assert found == self.model.description(number, place)

    def entered(self, number: int) -> None:
        """A machine has run, so that it has got its messages; it is to look."""
        if number != HOST and self.model.members[number].alive:
            self.model.enter(number)
        self.concerned.add(number)

    # ---- Messages, and memory ----

    def take(self, number: int, count: int) -> None:
        """Let a peer take messages."""
        told = self.world.receive(number, count)
        for fields, message in zip(told, list(self._taken(number, count)), strict=True):
            self._check_message(number, message, fields)
            self.count(f"take {message.operation.name} {message.status.name}")
        self.entered(number)

    def _taken(self, number: int, count: int) -> Iterator[Message]:
        member = self.model.members[number]
        for _ in range(count):
            if number == HOST and member.queue:
                yield self.model.deliver(number)
            elif number != HOST:
                if not member.ring:
                    self.model.enter(number)
                if member.ring:
                    yield member.ring.pop(0)

    @staticmethod
    def _check_message(number: int, message: Message, fields: tuple[object, ...]) -> None:
        assert fields[:6] == (
            *(message.operation, message.sender, message.tag, message.status),
            *(message.length, message.payload),
        )
        if number != HOST:
            flags = 0 if message.writable else Flags.READONLY
            assert fields[6:] == (message.spans, message.number, message.receiver, flags)
        elif message.operation in (Operation.RETURN, Operation.UNDELIVERED):
            spans = set(places_in(message.spans))  # of buffers that it may have sent meanwhile
            assert all(spans & set(places_in([extent])) for extent in fields[6])
        else:
            assert fields[6] == message.spans

    def write(self, number: int, places: list[int]) -> None:
        """Let a peer write new words, to be seen by all who share the pages."""
        words = dict(zip(places, self.words, strict=False))
        self.world.scatter(number, words)
        self.entered(number)
        for place, word in words.items():
            page = self.model.members[number].places[place]
            page.word = word
            self.concerned |= {page.owner, *page.loans}

    # ---- Deaths ----

    def touch(self, number: int, place: int, offset: int, access: str) -> None:
        """A peer does what it may not: a machine dies of exactly that, the host gets an error."""
        self.count(f"touch {self.model.members[number].hold(place).name} {access}")
        if number == HOST:
            assert not self.world.host_may(place, access)
            return
        hand = self.world.hands[number]
        hand.touch(hand.page(place) + offset, access)
        self.died(number, "touch")

    def exit(self, number: int) -> None:
        self.world.hands[number].exit(number)
        self.died(number, "exit")

    def end(self, number: int, how: str) -> None:
        """Kill or remove a machine."""
        self.world.end(number, how)
        self.died(number, how)

    def died(self, number: int, how: str) -> None:
        for peer in self.model.bury(number, self.world.came_back):
            self.entered(peer)
        self.count(f"death by {how}")

    # ---- Checks ----

    def check(self, full: bool) -> None:
        """Check everything, by looking through the eyes of those concerned, or of all who are
        awake.
        """
        check_books(self.world, self.model)
        lookers = [
            member.number
            for member in self.model.living()
            if not member.asleep and (full or member.number in self.concerned)
        ]
        self.concerned = set()
        for number in lookers:
            if number != HOST:
                self.model.enter(number)
        views = {number: self.model.members[number].with_hold(SEEN) for number in lookers}
        for number, words in self.world.gather(views).items():
            places = self.model.members[number].places
            assert words == [places[place].word for place in views[number]], f"peer {number}"
        if full:
            check_books(self.world, self.model)
            check_memory(self.world, self.model)
            check_tables(self.world, self.model)

    def finish(self) -> None:
        """Everybody has one more look, and then all machines die."""
        for member in self.model.living():
            member.asleep = False
        self.check(full=True)
        self.count = lambda what: None
        for member in self.model.living()[1:]:
            self.end(member.number, "kill")
        self.take(HOST, len(self.model.members[HOST].queue))
        self.check(full=True)
        states = +self.model.states()
        assert states.keys() <= {"free", "owned", "orphaned"}, states


def _name(operation: int) -> str:
    return Operation(operation).name if operation in set(Operation) else "unknown"

"""A machine that has of everything, and those that it is refused something for the sake of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvm.puppets import Puppet, Stage, descriptor, spans_of

from vmm import Monitor
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Operation, Status

Extent = tuple[int, int]


class Case(NamedTuple):
    """What is wrong with a descriptor, what is said to it, and who asks."""

    what: str
    status: Status
    asked: abi.Descriptor
    asker: str = "a"

    @property
    def pair(self) -> tuple[Operation, Status]:
        """What this is a case of."""
        return Operation(self.asked.operation), self.status


class Scene(Stage):
    """`a`, which asks, has of everything: `pages` tells where.

    b, c       borrow of it, and lend to it
    full       has a full queue, and has lent it a page
    dead       has stopped
    oneway     may send to it, but not the other way round, and has lent it a page
    stranger   is connected with nobody
    crowded    has a full window, but is allowed more
    poor       is allowed two pages, and has them
    late       has a queue that is longer than its receive ring
    """

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor, "abc")
        self.names = {puppet.name: puppet for puppet in self.puppets}
        self._enter("full", queue=1)
        self._enter("dead")
        self._enter("crowded", quota="4M").alloc(512)
        self._enter("poor", quota="8K").alloc(2)
        self._enter("late", queue=128)
        for name in ("oneway", "stranger"):
            self.names[name] = Puppet(monitor, name)
        monitor.connect(self["oneway"].machine, self["a"].machine, both=False)
        for name in ("oneway", "stranger"):
            self[name].boot()
            self.puppets.append(self[name])
        self.pages: dict[str, Extent] = {"NONE": (self["a"].page(500), 3)}
        monitor.kill(self["dead"].machine)
        self._lend_and_share()
        self._borrow()
        self._borrow_scattered()
        self["full"].idle()  # the last: a notice would wake it
        assert self["a"].send(self["full"], self.pages["SENT"]) is Status.OK

    def __getitem__(self, name: str) -> Puppet:
        return self.names[name]

    def _enter(self, name: str, **options: object) -> Puppet:
        self.names[name] = self.add(name, **options)
        return self.names[name]

    def _lend_and_share(self) -> None:
        a, b = self["a"], self["b"]
        names = ("OWNED", "SHARED", "LENT", "SENT")
        self.pages |= zip(names, a.alloc(3, 3, 3, 1), strict=True)
        assert a.share(b, self.pages["SHARED"]) is Status.OK
        assert a.lend(b, self.pages["LENT"]) is Status.OK

    def _borrow(self) -> None:
        c = self["c"]
        self.pages["of oneway"] = self._loan(self["oneway"])
        self.pages["of full"] = self._loan(self["full"])
        self.pages["BORROWED"] = self._loan(c, 3)
        self.pages["VIEWED"] = self._loan(c, writable=False)
        (own,) = c.alloc(1)
        assert c.lend(self["a"], own) is Status.OK
        self.pages["REVOKED"] = spans_of(self["a"].one())[0]
        assert c.reclaim(own) is Status.OK

    def _borrow_scattered(self) -> None:
        """Borrow of c what lies in 17 pieces there, and in one here."""
        c = self["c"]
        (own,) = c.alloc(33)
        pieces = [(own.gpa + 2 * index * PAGE_SIZE, 1) for index in range(17)]
        assert c.lend(self["a"], *pieces[:16]) is Status.OK
        assert c.lend(self["a"], pieces[16]) is Status.OK
        gpas = [extent.gpa for message in self["a"].inbox() for extent in spans_of(message)]
        assert gpas == [gpas[0] + index * PAGE_SIZE for index in range(17)]
        self.pages["scattered"] = (gpas[0], 17)

    def _loan(self, owner: Puppet, pages: int = 1, writable: bool = True) -> Extent:
        (own,) = owner.alloc(pages)
        assert owner.lend(self["a"], own, writable=writable) is Status.OK
        return spans_of(self["a"].one())[0]

    # ---- What is asked ----

    def asked(
        self, operation: Operation, *pages: str | Extent, to: str | int | None = None, **fields: int
    ) -> abi.Descriptor:
        """Make a descriptor for pages by name; to whom it would do, if nothing else is said."""
        if to is None:
            to = "c" if operation is Operation.RETURN else "b"
        number = to if isinstance(to, int) else self[to].number
        extents = [self.pages[page] if isinstance(page, str) else page for page in pages]
        return descriptor(operation, number, *extents, **fields)

    def good(self, operation: Operation) -> Extent:
        """Return an extent of a that the operation would do with."""
        names = {Operation.RETURN: "BORROWED", Operation.RECLAIM: "LENT"}
        return (0, 1) if operation is Operation.ALLOC else self.pages[names.get(operation, "OWNED")]

    def part(self, operation: Operation) -> Extent:
        """Return the middle of that: a window is cut there."""
        return self.good(operation)[0] + PAGE_SIZE, 1

    def wrong(self, cases: Sequence[Case]) -> list[tuple[str, Status]]:
        """Ask for what is to be refused; return what is answered otherwise.

        Nothing has changed, neither in the books nor in the mappings, which the audit of every test
        compares with them.
        """
        found = []
        before = self.snapshot()
        for asker in {case.asker for case in cases}:
            own = [case for case in cases if case.asker == asker]
            for first in range(0, len(own), abi.TX_ENTRIES):
                batch = own[first : first + abi.TX_ENTRIES]
                answers = self[asker].ask(*(case.asked for case in batch))
                found += [
                    (case.what, Status(answer.status))
                    for case, answer in zip(batch, answers, strict=True)
                    if answer.status != case.status
                ]
        assert self.snapshot() == before, f"something has changed; and wrong were {found}"
        return found

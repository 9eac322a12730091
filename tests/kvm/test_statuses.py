"""Every operation with every status that it can give: it says so, and nothing has changed.

Most cases stand side by side on one scene. As all of them are refused, they do not disturb each
other, and go in as few doorbells as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
from kvm.puppets import descriptor
from kvm.status_scene import Case, Extent, Scene

from vmm import Monitor
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Flags, Hold, Operation, Status

O, S = Operation, Status  # noqa: E741

pytestmark = pytest.mark.not_in_ept("statuses, which the books give")

GIVING = (O.SEND, O.LEND, O.SHARE, O.EXCHANGE)
OF_EXTENTS = (*GIVING, O.RETURN, O.RECLAIM, O.RELEASE)
TOP, MOST = 1 << 64, (1 << 32) - 1

# What each operation can be refused with, as docs/protocol.md says, and vmm/ferry does.
_ALL = {S.E_LENGTH, S.E_RESERVED}
_EXTENTS = _ALL | {S.E_ALIGNMENT, S.E_RANGE, S.E_OVERLAP}
_LIMITS = {S.E_QUOTA, S.E_NO_MEMORY}
_MESSAGE = _EXTENTS | _LIMITS | {S.E_PEER, S.E_QUEUE_FULL, S.E_RECLAIMED}
_GIVING = _MESSAGE | {S.E_DEAD, S.E_OWNERSHIP, S.E_LENT, S.E_BORROWED, S.E_WINDOW_FULL}
STATUSES: dict[Operation, set[Status]] = {
    O.SEND: _GIVING,
    O.LEND: _GIVING,
    O.SHARE: _GIVING | {S.E_REPEATED},
    O.EXCHANGE: _GIVING,
    O.RETURN: _MESSAGE | {S.E_NOT_LENT},
    O.RECLAIM: _EXTENTS | _LIMITS | {S.E_NOT_LENT, S.E_BORROWED, S.E_RECLAIMED},
    O.RELEASE: _EXTENTS | _LIMITS | {S.E_OWNERSHIP, S.E_LENT, S.E_BORROWED},
    O.ALLOC: _ALL | _LIMITS | {S.E_RANGE, S.E_WINDOW_FULL},
    O.QUERY: _ALL | {S.E_ALIGNMENT, S.E_RANGE},
}

# What an operation on a page is refused with for what the page is to who asks.
BY_HOLD: dict[Status, list[tuple[Operation, Hold]]] = {
    S.E_OWNERSHIP: [*product((*GIVING, O.RELEASE), (Hold.NONE, Hold.SENT))],
    S.E_LENT: [
        *product((O.SEND, O.LEND, O.EXCHANGE, O.RELEASE), (Hold.LENT, Hold.SHARED)),
        (O.SHARE, Hold.LENT),
    ],
    S.E_BORROWED: [*product((*GIVING, O.RELEASE, O.RECLAIM), (Hold.BORROWED, Hold.VIEWED))],
    S.E_RECLAIMED: [*product((*GIVING, O.RECLAIM, O.RETURN), (Hold.REVOKED,))],
    S.E_NOT_LENT: [
        *product((O.RECLAIM, O.RETURN), (Hold.NONE, Hold.OWNED, Hold.SENT)),
        *product((O.RETURN,), (Hold.LENT, Hold.SHARED)),
    ],
}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Monitor(pool="8M") as monitor:
        yield Scene(monitor)


# ---- The cases, as the scene stands ----


def of_fields(s: Scene, operation: Operation) -> Iterator[Case]:
    """What is wrong with a descriptor whatever there is."""
    good = s.good(operation)

    def case(status: Status, *pages: Extent, **fields: int) -> Case:
        made = s.asked(operation, *(pages or [good]), **fields)
        return Case(f"{fields or pages}", status, made)

    for field, values in (("extent_count", (17, 0xFFFF)), ("payload_length", (193, 0xFFFF))):
        for value in values:
            yield case(S.E_LENGTH, **{field: value})
    readonly = () if operation in (O.LEND, O.SHARE) else (Flags.READONLY,)
    for flags in (*readonly, 2, 0x8000, 0xFFFF):
        yield case(S.E_RESERVED, flags=flags)
    yield case(S.E_RESERVED, reserved0=1)
    yield case(S.E_RESERVED, reserved0=1 << 31, tag=TOP - 1)
    for index, word in ((0, 1), (1, 1 << 63)):
        made = case(S.E_RESERVED)
        made.asked.reserved1[index] = word
        yield made
    made = case(S.E_RESERVED)
    made.asked.extents[0].attributes = 1
    yield made
    made = case(S.E_RESERVED, *[good] * 16)
    made.asked.extents[15].attributes = 1 << 31
    yield made
    if operation is not O.SEND and operation is not O.QUERY:
        yield Case("no extents", S.E_LENGTH, s.asked(operation))
    if operation not in (O.ALLOC, O.QUERY):
        most = good[1] * PAGE_SIZE
        for length in (most + 1, TOP - 1):
            yield case(S.E_LENGTH, length=length)


def of_extents(s: Scene, operation: Operation) -> Iterator[Case]:
    """Extents that are none, alone and beside a good one."""
    base, good = s["a"].base, s.good(operation)
    end, gpa = base + 512 * PAGE_SIZE, good[0]
    page, nothing = PAGE_SIZE, (gpa, 0)
    outside = [(base - page, 1), (base - page, 2), (end, 1), (end - page, 2), (base, 513), (0, 1)]
    outside += [nothing, (base, MOST), (gpa, MOST), (TOP - page, 1), (TOP - page, MOST)]
    unaligned = [(gpa + 1, 1), (gpa + page // 2, 1), (gpa - 1, 1), (TOP - 1, 1), (TOP - 1, MOST)]
    for status, extents in ((S.E_RANGE, outside), (S.E_ALIGNMENT, unaligned)):
        for extent in extents:
            yield Case(f"{extent}", status, s.asked(operation, extent))
            if operation is not O.QUERY:
                yield Case(f"{extent} beside", status, s.asked(operation, good, extent))
    if operation is not O.QUERY:
        last = (gpa + (good[1] - 1) * page, 1)
        for pair in ((good, good), (good, last), (last, good)):
            yield Case(f"{pair}", S.E_OVERLAP, s.asked(operation, *pair))
        others = [(base + (480 + index) * page, 1) for index in range(14)]
        yield Case("16", S.E_OVERLAP, s.asked(operation, last, *others, good))


def of_holds(s: Scene, operation: Operation) -> Iterator[Case]:
    """Pages that are something else, alone and beside, before and behind a good one."""
    good = s.good(operation)
    for status, pairs in BY_HOLD.items():
        for hold in (hold for other, hold in pairs if other is operation):
            bad = s.pages[hold.name]
            for pages in ((bad,), (good, bad), (bad, good)):
                yield Case(f"{hold.name} {pages}", status, s.asked(operation, *pages))


def of_peers(s: Scene, operation: Operation) -> Iterator[Case]:
    """Receivers that are none, or have no room."""
    a = s["a"].number
    unknown = {S.E_PEER: ("stranger", "oneway", a, 9999, MOST), S.E_DEAD: ("dead",)}
    for status, names in {**unknown, S.E_QUEUE_FULL: ("full",)}.items():
        for to in names:
            yield Case(f"to {to}", status, s.asked(operation, "OWNED", to=to))
    yield Case("no window", S.E_WINDOW_FULL, s.asked(operation, "OWNED", to="crowded"))


def of_send(s: Scene) -> Iterator[Case]:
    yield Case("no extents", S.E_LENGTH, s.asked(O.SEND, length=1))
    yield Case("receiver's quota", S.E_QUOTA, s.asked(O.SEND, "OWNED", to="poor"))


def of_share(s: Scene) -> Iterator[Case]:
    shared = s.pages["SHARED"]
    for pages in ((shared,), (s.part(O.SHARE), (shared[0] + PAGE_SIZE, 1))):
        yield Case("shared again", S.E_REPEATED, s.asked(O.SHARE, *pages))


def of_exchange(s: Scene) -> Iterator[Case]:
    yield Case("receiver's quota", S.E_QUOTA, s.asked(O.EXCHANGE, "OWNED", to="poor"))
    for name, status in (("crowded", S.E_WINDOW_FULL), ("poor", S.E_QUOTA)):
        yield Case("own limit", status, s.asked(O.EXCHANGE, (s[name].base, 1)), name)


def of_return(s: Scene) -> Iterator[Case]:
    back = s.pages["BORROWED"]
    for to in ("b", "stranger", "dead", s["a"].number, 9999, MOST, abi.PEER_HOST):
        yield Case(f"to {to}", S.E_NOT_LENT, s.asked(O.RETURN, back, to=to))
    yield Case("of two", S.E_NOT_LENT, s.asked(O.RETURN, back, "of oneway"))
    yield Case("no channel", S.E_PEER, s.asked(O.RETURN, "of oneway", to="oneway", payload=b"p"))
    yield Case("no room", S.E_QUEUE_FULL, s.asked(O.RETURN, "of full", to="full"))
    yield Case("17 pieces", S.E_LENGTH, s.asked(O.RETURN, "scattered"))


def of_alloc(s: Scene) -> Iterator[Case]:
    for extents in (((0, 0),), ((0, 1), (0, 0))):
        yield Case("nothing", S.E_RANGE, s.asked(O.ALLOC, *extents))
    for gpa in (1, s["a"].base, TOP - 1):
        yield Case("where", S.E_RESERVED, s.asked(O.ALLOC, (gpa, 1)))
    for extents in (((0, MOST),), ((0, MOST),) * 16, ((0, 512),)):
        yield Case(f"{extents}", S.E_QUOTA, s.asked(O.ALLOC, *extents))
    yield Case("quota", S.E_QUOTA, s.asked(O.ALLOC, (0, 1)), "poor")
    yield Case("window", S.E_WINDOW_FULL, s.asked(O.ALLOC, (0, 1)), "crowded")


def of_query(s: Scene) -> Iterator[Case]:
    yield Case("two extents", S.E_LENGTH, s.asked(O.QUERY, "OWNED", "OWNED"))
    yield Case("a length", S.E_LENGTH, s.asked(O.QUERY, length=1))


OF: dict[Operation, Callable[[Scene], Iterator[Case]]] = {
    O.SEND: of_send,
    O.SHARE: of_share,
    O.EXCHANGE: of_exchange,
    O.RETURN: of_return,
    O.ALLOC: of_alloc,
    O.QUERY: of_query,
}


def standing(s: Scene, operation: Operation) -> list[Case]:
    cases = [*of_fields(s, operation), *of_holds(s, operation)]
    if operation is not O.ALLOC:
        cases += of_extents(s, operation)
    if operation in GIVING:
        cases += of_peers(s, operation)
    if operation in OF:
        cases += OF[operation](s)
    return cases


# ---- The cases for want of something ----


def without_pieces(s: Scene) -> list[Case]:
    """When a's window must not be cut into more."""
    pieces = [(operation, s.part(operation)) for operation in OF_EXTENTS]
    return [Case("pieces", S.E_QUOTA, s.asked(o, part)) for o, part in (*pieces, (O.ALLOC, (0, 1)))]


def without_mappings(s: Scene) -> list[Case]:
    """When the host is not sure to have the mappings for more."""
    return [case._replace(status=S.E_NO_MEMORY) for case in without_pieces(s)]


def without_pool(s: Scene) -> list[Case]:
    asked = s.asked(O.ALLOC, (0, 1)), s.asked(O.EXCHANGE, "OWNED")
    return [Case("pool", S.E_NO_MEMORY, made) for made in asked]


@pytest.mark.parametrize("operation", STATUSES)
def test_a_refusal_says_why_and_changes_nothing(scene: Scene, operation: Operation) -> None:
    assert scene.wrong(standing(scene, operation)) == []


def test_an_operation_that_is_none_is_refused(scene: Scene) -> None:
    numbers = (0, 10, 63, 127, 128, 129, 0x101, 0x8001, 0xFFFF)
    own = scene.pages["OWNED"]
    cases = [Case(f"{n}", S.E_OPERATION, descriptor(n, scene["b"].number, own)) for n in numbers]
    assert scene.wrong(cases) == []


def test_what_is_on_its_way_is_nobodys_to_use(scene: Scene) -> None:
    late = scene["late"]
    asked = [scene.asked(operation, (late.base, 1)) for operation in OF_EXTENTS]
    answers = late.ask_before(scene.monitor.host.alloc(PAGE_SIZE), *asked)
    statuses = {Operation(answer.operation): Status(answer.status) for answer in answers}
    lent = dict.fromkeys((O.RETURN, O.RECLAIM), S.E_NOT_LENT)
    assert statuses == dict.fromkeys(OF_EXTENTS, S.E_OWNERSHIP) | lent
    assert late.release((late.base, 1)) is S.OK


def test_a_window_cannot_be_cut_into_more_pieces_than_it_may(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = scene.monitor._exchange.ledger.account(scene["a"].number)
    monkeypatch.setattr(account, "pieces", len(account.window))
    assert scene.wrong(without_pieces(scene)) == []
    monkeypatch.undo()
    account = scene.monitor._exchange.ledger.account(scene["b"].number)
    monkeypatch.setattr(account, "pieces", len(account.window))
    asked = [Case("b's", S.E_WINDOW_FULL, scene.asked(o, "OWNED")) for o in GIVING]
    assert scene.wrong(asked) == []


def test_windows_cannot_be_cut_into_more_pieces_than_the_host_has_mappings(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = scene.monitor._exchange.ledger
    monkeypatch.setattr(ledger, "ask_for_pieces", None)  # it gets no more
    monkeypatch.setattr(ledger, "_pieces", 1)
    monkeypatch.setattr(ledger, "_reserve", 0)  # else each may make as many as are kept for it
    assert scene.wrong(without_mappings(scene)) == []


def test_the_pool_can_be_empty(scene: Scene) -> None:
    rest = scene.monitor.host.alloc(scene.monitor.audit()["free"] * PAGE_SIZE)
    assert scene.wrong(without_pool(scene)) == []
    scene.monitor.host.release(rest)


def test_there_is_a_case_of_every_operation_with_every_status_that_it_can_give(
    scene: Scene,
) -> None:
    cases = [case for operation in STATUSES for case in standing(scene, operation)]
    cases += [*without_pieces(scene), *without_mappings(scene), *without_pool(scene)]
    pairs = {(operation, status) for operation, those in STATUSES.items() for status in those}
    assert {case.pair for case in cases} == pairs
    others = {S.OK, S.PENDING, S.E_OPERATION}  # the last of those that are none
    of_bells = {S.E_TIMEOUT, S.E_ADDRESS, S.E_RING, S.E_BELL}  # test_waiting, test_refusals
    assert set(Status) == {status for _, status in pairs} | others | of_bells

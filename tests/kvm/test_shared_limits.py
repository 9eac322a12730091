"""What machines have in common, and some that take all they can get of it: pieces of windows, the
pool, a peer's window and its queue. The others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from kvm.puppets import Puppet, descriptor, spans_of

from vmm import Monitor, host
from vmm.errors import ResourceError
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status

Open = Callable[..., Monitor]

PIECES = 800  # that the host can map, for all
POOL = 4096  # pages

pytestmark = pytest.mark.not_in_lanes("limits, which are the monitor's own")


@pytest.fixture
def monitor(open_monitor: Open, mover: str, monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """A monitor on a host that maps little."""
    probe = open_monitor(mover=mover, pool="1M")
    monkeypatch.setattr(host, "mapping_limit", lambda: 2 * (2 * PIECES + probe._mover.seams))
    return open_monitor(mover=mover, pool=POOL * PAGE_SIZE)


def puppets(monitor: Monitor, *names: str, **options: object) -> list[Puppet]:
    """Machines that are connected each with each, and run."""
    made = [Puppet(monitor, name, **{"window": "4M", **options}) for name in names]
    for index, one in enumerate(made):
        for other in made[index + 1 :]:
            monitor.connect(one.machine, other.machine)
    for one in made:
        one.boot()
    return made


def one_by_one(
    puppet: Puppet, operation: Operation, to: int, pages: list[tuple[int, int]]
) -> Counter[Status]:
    """Do the same with each of many extents; return how often it was answered how."""
    found: Counter[Status] = Counter()
    for first in range(0, len(pages), 64):
        asked = [descriptor(operation, to, page) for page in pages[first : first + 64]]
        found.update(Status(answer.status) for answer in puppet.ask(*asked))
    return found


def every_other(gpa: int, count: int) -> list[tuple[int, int]]:
    return [(gpa + index * PAGE_SIZE, 1) for index in range(1, count, 2)]


def goes_round(one: Puppet, other: Puppet) -> None:
    """A page goes there and back."""
    (page,) = one.alloc(1)
    assert one.send(other, page) is Status.OK
    (there,) = spans_of(other.one())
    assert other.send(one, there) is Status.OK
    (back,) = spans_of(one.one())
    assert one.release(back) is Status.OK


# ---- Pieces ----


def test_machines_that_cut_their_windows_to_pieces_leave_the_others_their_share(
    monitor: Monitor,
) -> None:
    steady, friend, late = puppets(monitor, "steady", "friend", "late")
    hogs = puppets(monitor, "hog", "hog-2", "hog-3")
    ledger = monitor._exchange.ledger
    answers: Counter[Status] = Counter()
    for hog in hogs:
        (whole,) = hog.alloc(800)
        answers += one_by_one(hog, Operation.RELEASE, 0, every_other(whole.gpa, 800))
    assert set(answers) == {Status.OK, Status.E_NO_MEMORY}
    assert sum(len(hog.held()) for hog in hogs) > PIECES // 2  # what nobody else wants is theirs
    assert all(len(hog.held()) >= PIECES // 14 for hog in hogs)
    goes_round(steady, friend)
    late.alloc(*[1] * 16)
    buffer = monitor.host.alloc(PAGE_SIZE)
    monitor.host.send(late.machine, buffer)
    assert ledger._tally.intervals <= PIECES


def test_the_host_is_told_that_it_is_pieces_that_are_wanting(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = monitor._exchange.ledger
    buffer = monitor.host.alloc(PAGE_SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "ask_for_pieces", None)  # it gets no more
        patch.setattr(ledger, "_pieces", 1)
        patch.setattr(ledger, "_reserve", 0)
        with pytest.raises(ResourceError, match="into as many pieces as this host can map"):
            monitor.host.alloc(PAGE_SIZE)
    with pytest.raises(ResourceError, match=r"of .* are left in the page pool|are left in the"):
        monitor.host.alloc((POOL + 1) * PAGE_SIZE)
    monitor.host.release(buffer)


@pytest.mark.parametrize("operation", [Operation.LEND, Operation.SHARE])
def test_a_borrower_cannot_cut_its_lenders_window_beyond_its_limit(
    monitor: Monitor, operation: Operation
) -> None:
    owner, borrower = puppets(monitor, "owner", "borrower", queue=1000)
    account = monitor._exchange.ledger.account(owner.number)
    account.pieces = 20
    (whole,) = owner.alloc(100)
    assert owner.do(operation, borrower, whole) is Status.OK
    (there,) = spans_of(borrower.one())
    answers = one_by_one(borrower, Operation.RETURN, owner.number, every_other(there.gpa, 100))
    assert answers == {Status.OK: 10, Status.E_QUOTA: 40}
    assert len(owner.held()) == account.pieces
    # What it has in one piece it can return, whatever its lender's window is like.
    for run in borrower.held():
        if run.hold in (Hold.BORROWED, Hold.VIEWED):
            assert borrower.give_back(owner, (borrower.page(run.page), run.pages)) is Status.OK
    assert len(owner.held()) == 1


def test_a_lender_cannot_cut_its_borrowers_window_beyond_its_limit(monitor: Monitor) -> None:
    owner, borrower = puppets(monitor, "owner", "borrower")
    account = monitor._exchange.ledger.account(borrower.number)
    account.pieces = 20
    (whole,) = owner.alloc(100)
    assert owner.lend(borrower, whole) is Status.OK
    borrower.one()
    answers = one_by_one(owner, Operation.RECLAIM, 0, every_other(whole.gpa, 100))
    assert answers == {Status.OK: 10, Status.E_QUOTA: 40}
    assert len(borrower.held()) == account.pieces
    for run in owner.held():
        if run.hold is Hold.LENT:
            assert owner.reclaim((owner.page(run.page), run.pages)) is Status.OK


# ---- The pool ----


def test_one_that_allocates_all_there_is_leaves_the_others_their_share(monitor: Monitor) -> None:
    hog, accomplice, steady, friend = puppets(
        monitor, "hog", "accomplice", "steady", "friend", window="32M"
    )
    for _ in range(3):  # what it passes on is no longer its share, and does not come back
        while hog.do(Operation.ALLOC, 0, (0, 64)) is Status.OK:
            pass
        while hog.do(Operation.ALLOC, 0, (0, 1)) is Status.OK:
            pass
        mine = [(hog.page(run.page), run.pages) for run in hog.held() if run.hold is Hold.OWNED]
        hog.send(accomplice, *mine[:16])
    assert hog.do(Operation.ALLOC, 0, (0, 1)) is Status.E_NO_MEMORY
    goes_round(steady, friend)
    steady.alloc(POOL // 64)
    friend.alloc(POOL // 64)
    assert steady.do(Operation.ALLOC, 0, (0, 1)) is Status.E_NO_MEMORY
    monitor.host.alloc(PAGE_SIZE)


# ---- A peer's window ----


def fill_by(lender: Puppet, victim: Puppet, *, take_back: bool) -> int:
    """Lend as long as it is not refused, and maybe reclaim each; return how many pages."""
    pages = 0
    for count in (128, 64, 32, 16, 8, 4, 2, 1):
        while True:
            (own,) = lender.alloc(count)
            if lender.lend(victim, own) is not Status.OK:
                assert lender.release(own) is Status.OK
                break
            pages += count
            if take_back:
                assert lender.reclaim(own) is Status.OK
                assert lender.release(own) is Status.OK
            victim.inbox()
    return pages


@pytest.mark.parametrize("take_back", [True, False], ids=["reclaimed", "lent"])
def test_lenders_cannot_fill_a_window_so_that_nobody_else_is_heard(
    monitor: Monitor, take_back: bool
) -> None:
    victim, steady, *evil = puppets(monitor, "victim", "steady", "evil", "evil-2", "evil-3")
    assert fill_by(evil[0], victim, take_back=take_back) == 512  # half of its window
    (page,) = steady.alloc(1)
    assert steady.lend(victim, page) is Status.OK
    (there,) = spans_of(victim.one())
    assert victim.give_back(steady, there) is Status.OK
    steady.inbox()
    fill_by(evil[1], victim, take_back=take_back)
    fill_by(evil[2], victim, take_back=take_back)
    assert sum(run.pages for run in victim.held()) == 1024 - 1024 // 8
    assert steady.send(victim, page) is Status.OK
    assert spans_of(victim.one())
    if take_back:  # when the places are let go of, it can lend again
        victim.give_up(Operation.RELEASE, (Hold.REVOKED,))
        (own,) = evil[0].alloc(1)
        assert evil[0].lend(victim, own) is Status.OK


def test_a_lender_cannot_take_all_pieces_of_a_window(monitor: Monitor) -> None:
    victim, steady, evil = puppets(monitor, "victim", "steady", "evil", queue=1000)
    monitor._exchange.ledger.account(victim.number).pieces = 40
    (whole,) = evil.alloc(200)
    answers = one_by_one(evil, Operation.LEND, victim.number, every_other(whole.gpa, 200))
    assert answers == {Status.OK: 20, Status.E_WINDOW_FULL: 80}
    (page,) = steady.alloc(1)
    assert steady.lend(victim, page) is Status.OK


# ---- A peer's queue ----


def test_each_sender_has_a_place_in_a_queue_that_another_floods(monitor: Monitor) -> None:
    victim, steady, evil = puppets(monitor, "victim", "steady", "evil")
    victim.idle()
    while evil.send(victim, payload=b"!") is Status.OK:
        pass
    assert len(victim.machine.peer.queue) == 64
    (page,) = steady.alloc(1)
    assert steady.send(victim, page) is Status.OK
    assert steady.send(victim) is Status.E_QUEUE_FULL
    assert evil.send(victim) is Status.E_QUEUE_FULL
    victim.awake()
    assert [m.sender for m in victim.inbox()] == [evil.number] * 64 + [steady.number]

"""Exchanges that are copied: what each side sees is what it sees of those that are moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import pageferry
from kvm.puppets import Puppet, Span, Stage, spans_of
from kvm.ways import WAYS, named

from vmm import ConfigError, Monitor, host
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status
from vmm.memory import mapping
from vmm.memory.mapping import HUGE
from vmm.memory.movers.park import Park
from vmm.memory.pagemap import kept_in_place

LIMIT = 4 * PAGE_SIZE
MADV_COLLAPSE = 25  # Linux 6.1


pytestmark = pytest.mark.not_in_ept("what is copied, which calls of the host's do")


@pytest.fixture(scope="module", params=WAYS)
def copying(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Three puppets whose exchanges of fewer than four pages are copied, once per mover."""
    with (
        named(request.param) as mover,
        Monitor(mover=mover, pool="64M", copy_below=LIMIT, audit=True) as monitor,
    ):
        yield Stage(monitor, "abc")


@pytest.fixture
def stage(copying: Stage) -> Iterator[Stage]:
    """These, and nothing lost by the end of the test."""
    before = copying.monitor.audit()
    yield copying
    copying.clear()
    assert copying.monitor.audit() == before


def frames(puppet: Puppet, span: tuple[int, int]) -> list[int]:
    """The frames in an extent of a puppet's window, by the ledger."""
    first, end = (
        (span[0] - puppet.base) // PAGE_SIZE,
        (span[0] - puppet.base) // PAGE_SIZE + span[1],
    )
    runs = [run.clip(first, end) for run in puppet.held() if run.page < end and run.end > first]
    return [run.frame + i for run in runs for i in range(run.pages)]


def physical(puppet: Puppet, span: tuple[int, int]) -> list[int | None]:
    """The numbers of the physical pages behind it; without the privilege nothing is known."""
    start, pages = span
    return [puppet.machine.frame_number(start + i * PAGE_SIZE) for i in range(pages)]


def collapse(stage: Stage) -> None:
    """Have the kernel make huge pages of what is at home there, as it does whenever it likes to."""
    pool = stage.monitor._mover.pool
    if isinstance(pool, Park):
        for lodging in pool.lodgings:
            if lodging.anonymous and lodging.window is None:
                home = pool.home(lodging.frame) // HUGE * HUGE
                mapping._madvise(home, HUGE, MADV_COLLAPSE)


@pytest.mark.parametrize("pages", [1, 3, 4, 6])
def test_small_exchanges_leave_the_very_page_and_large_ones_another(
    stage: Stage, pages: int
) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(pages)
    a.write(own.gpa, 5, pages)
    with kept_in_place(a.machine.peer.window.address((own.gpa - a.base) // PAGE_SIZE), pages):
        before, real = frames(a, own), physical(a, own)
        b.idle()
        assert a.exchange(b, own, tag=3) is Status.OK
        assert a.read(own.gpa, pages) == [0] * pages
        a.write(own.gpa, 70, pages)
        assert (frames(a, own) == before) == (pages * PAGE_SIZE < LIMIT)
        collapse(stage)
        b.awake()
        message = b.one()
        (there,) = spans_of(message)
        assert (message.operation, message.tag, there.pages) == (Operation.SEND, 3, pages)
        assert b.read(there.gpa, pages) == list(range(5, 5 + pages))
        assert (frames(b, there) == before) == (pages * PAGE_SIZE >= LIMIT)
        assert not set(frames(a, own)) & set(frames(b, there))
        if real[0] is not None:
            moved = pages * PAGE_SIZE >= LIMIT
            assert physical(b, there) == real if moved else physical(a, own) == real
    b.write(there.gpa, 90, pages)
    assert a.read(own.gpa, pages) == list(range(70, 70 + pages))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_what_lies_in_two_kinds_of_memory_is_copied_as_a_whole(stage: Stage, shared: int) -> None:
    """What has been shared is the memfd's, and its neighbours, with `remap`, are not."""
    for sender, other in (stage.puppets[:2], stage.puppets[1::-1]) * 2:
        other.alloc(1)  # so that each has some whose frames are aligned as their places are
        (own,) = sender.alloc(3)
        sender.write(own.gpa, 5, 3)
        assert sender.share(other, Span(own.gpa + shared * PAGE_SIZE, 1)) is Status.OK
        (seen,) = spans_of(other.one())
        assert other.give_back(sender, seen) is Status.OK
        sender.inbox()
        assert sender.exchange(other, own) is Status.OK
        assert sender.read(own.gpa, 3) == [0, 0, 0]
        (there,) = spans_of(other.one())
        assert other.read(there.gpa, 3) == [5, 6, 7]


def test_parts_of_what_has_moved_and_come_in_pieces_are_copied(stage: Stage) -> None:
    a, b, c = stage.puppets
    (first,), (second,) = a.alloc(3), c.alloc(2)
    a.write(first.gpa, 1, 3)
    c.write(second.gpa, 11, 2)
    assert c.send(a, second) is Status.OK
    (came,) = spans_of(a.one())
    parts = [Span(came.gpa + PAGE_SIZE, 1), Span(first.gpa, 2)]
    assert a.exchange(b, *parts) is Status.OK
    assert [b.read(*there) for there in spans_of(b.one())] == [[12], [1, 2]]
    assert (a.read(first.gpa, 3), a.read(came.gpa, 2)) == ([0, 0, 3], [11, 0])


def test_a_copy_for_the_dead_comes_back_beside_what_was_kept(stage: Stage) -> None:
    a = stage.puppets[0]
    dead = stage.add("dead")
    (own,) = a.alloc(2)
    a.write(own.gpa, 5, 2)
    dead.idle()
    assert a.exchange(dead, own) is Status.OK
    a.write(own.gpa, 70, 2)
    stage.monitor.kill(dead.machine)
    back = a.one()
    assert (back.operation, back.status) == (Operation.UNDELIVERED, Status.E_DEAD)
    (home,) = spans_of(back)
    assert (a.read(home.gpa, 2), a.read(own.gpa, 2)) == ([5, 6], [70, 71])
    assert a.holds(home.gpa) is Hold.OWNED
    stage.puppets.remove(dead)
    stage.monitor.remove(dead.machine)


def test_what_its_receiver_frees_is_zeros_to_the_next(stage: Stage) -> None:
    a, b, c = stage.puppets
    (own,) = a.alloc(3)
    a.write(own.gpa, 5, 3)
    assert a.exchange(b, own) is Status.OK
    (there,) = spans_of(b.one())
    freed = frames(b, there)
    assert b.release(there) is Status.OK
    (fresh,) = c.alloc(8)
    assert set(freed) <= set(frames(c, fresh))
    assert c.read(fresh.gpa, 8) == [0] * 8


def test_the_hosts_small_exchanges_are_copied_too(stage: Stage) -> None:
    a, endpoint = stage.puppets[0], stage.monitor.host
    buffer = endpoint.alloc(2 * PAGE_SIZE)
    buffer.write(b"@")
    buffer.write(b"A", PAGE_SIZE)
    before = buffer.frame_number()
    endpoint.exchange(a.machine, buffer)
    assert (buffer.hold, buffer.read()) == (Hold.OWNED, bytes(2 * PAGE_SIZE))
    assert before is None or buffer.frame_number() == before
    (there,) = spans_of(a.one())
    assert a.read(there.gpa, 2) == [0x40, 0x41]
    endpoint.release(buffer)


# ---- The limit ----


def test_the_limit_is_the_hosts_or_what_is_said() -> None:
    with Monitor(pool="1M") as monitor:
        assert monitor.copy_below == host.inspect().copy_below
    for given, limit in ((0, 0), ("0", 0), ("256K", 256 << 10), (5000, 5000)):
        with Monitor(pool="1M", copy_below=given) as monitor:
            assert monitor.copy_below == limit
    for wrong in (-1, "much", "1.5"):
        with pytest.raises(ConfigError, match="copy_below"):
            Monitor(copy_below=wrong)


def test_nothing_is_measured_where_the_limit_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("vmm.host.copying.costs", refuse)
    Monitor(pool="1M", copy_below=0).close()
    with pytest.raises(AssertionError, match="measured"):
        Monitor(pool="1M")


@pytest.mark.not_in_lanes("an option of the command")
@pytest.mark.parametrize("limit", ["0", "64K", "1G"])
def test_the_command_has_an_option_for_it(guest_elf: Callable[[str], Path], limit: str) -> None:
    stages = [guest_elf(f"stage_{name}") for name in ("source", "filter", "sink")]
    ended = pageferry("run", *stages, "--window", "16M", "--audit", "--copy-below", limit)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.not_in_lanes("an option of the command")
def test_the_command_refuses_what_is_no_limit() -> None:
    ended = pageferry("demo", "--copy-below", "much")
    assert ended.code == 2
    assert "'much' is not a size" in ended.err

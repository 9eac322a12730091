"""Long work is done in slices, each in a turn of its own; what comes of it is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kvm.puppets import Puppet, spans_of
from tests_support import sized

from vmm import Monitor
from vmm.ferry import slices
from vmm.guest.abi import PAGE_SIZE, Status

Open = Callable[..., Monitor]

pytestmark = pytest.mark.smaller_in_lanes("each page is a fault")

PAGES = sized(48 << 20, 20 << 20) // PAGE_SIZE


@pytest.fixture
def monitor(open_monitor: Open, mover: str) -> Monitor:
    return open_monitor(mover=mover, pool="128M")


def turns_of(monitor: Monitor, monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Note in which turns some of the long work is done."""
    found: list[int] = []
    work = getattr(slices.Slices, name)

    def noted(*args: object) -> bool:
        assert monitor._turns.journal.active
        found.append(monitor._turns.journal.turn)
        return bool(work(*args))

    monkeypatch.setattr(slices.Slices, name, noted)
    return found


def big(monitor: Monitor, name: str) -> Puppet:
    puppet = Puppet(monitor, name, window="128M")
    puppet.boot()
    return puppet


def test_what_the_host_shares_is_copied_in_turns_of_its_own(
    monitor: Monitor, mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = big(monitor, "reader")
    buffer = monitor.host.alloc(PAGES * PAGE_SIZE)
    for page in range(0, PAGES, 512):
        buffer.write(page.to_bytes(8, "little"), page * PAGE_SIZE)
    found = turns_of(monitor, monkeypatch, "prepare")
    monitor.host.share(reader.machine, buffer)
    if mover.startswith("remap"):
        assert len(set(found)) >= PAGES // slices.SHARED_AT_ONCE
    (there,) = spans_of(reader.one())
    for page in range(0, PAGES, 512):
        assert reader.read(there.gpa + page * PAGE_SIZE) == [page]
    monitor.host.reclaim(buffer)
    for page in range(0, PAGES, 512):
        assert buffer.read(page * PAGE_SIZE, 8) == page.to_bytes(8, "little")
    monitor.host.release(buffer)


def test_what_a_machine_shares_is_copied_in_turns_of_its_own(
    monitor: Monitor, mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, reader = big(monitor, "owner"), big(monitor, "reader")
    monitor.connect(owner.machine, reader.machine)
    (own,) = owner.alloc(PAGES)
    owner.write(own.gpa, 7, PAGES)
    found = turns_of(monitor, monkeypatch, "prepare")
    assert owner.share(reader, own) is Status.OK
    if mover.startswith("remap"):
        assert len(set(found)) > PAGES // slices.SHARED_AT_ONCE
    (there,) = spans_of(reader.one())
    assert reader.read(there.gpa + (PAGES - 1) * PAGE_SIZE) == [7 + PAGES - 1]
    assert owner.read(own.gpa, 3) == [7, 8, 9]


@pytest.mark.parametrize("how", ["released", "dead", "the host's"])
def test_what_is_freed_is_zeroed_in_turns_of_its_own_before_anybody_has_it(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    owner = big(monitor, "owner")
    found = turns_of(monitor, monkeypatch, "chores")
    if how == "the host's":
        buffer = monitor.host.alloc(PAGES * PAGE_SIZE)
        buffer.write(b"!" * PAGE_SIZE * PAGES)
        monitor.host.release(buffer)
    else:
        (own,) = owner.alloc(PAGES)
        owner.write(own.gpa, 7, PAGES)
        if how == "dead":
            owner.exit()
        else:
            assert owner.release(own) is Status.OK
    assert len(set(found)) == -(-PAGES // slices.ZEROED_AT_ONCE)
    pages = monitor.audit()
    assert pages["free"] == sum(pages.values())
    reader = big(monitor, "reader")
    (all_,) = reader.alloc(PAGES + 4096)
    for page in range(0, all_.pages, 256):
        assert reader.read(all_.gpa + page * PAGE_SIZE) == [0]

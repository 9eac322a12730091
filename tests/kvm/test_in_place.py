"""The way in which sandboxes have their pages: what the host shares stays where the host has it.

What holds for every way in which pages move holds for this one: the tests that are taken over from
other files are run with it here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvm.puppets import Stage, spans_of
from kvm.test_isolation import (  # noqa: F401
    test_released_pages_and_those_of_the_dead_read_as_zero_to_their_next_owner,
)
from kvm.test_loans import (  # noqa: F401
    test_a_reclaimed_place_is_kept_until_the_message_that_names_it_has_come,
    test_pages_are_reclaimed_from_borrowers_that_spin_on_them,
    test_what_is_lent_is_the_borrowers_until_it_is_returned,
    test_what_is_reclaimed_leaves_an_empty_place_until_the_borrower_lets_go,
)
from kvm.test_protocol_model import (  # noqa: F401
    test_machines_and_their_memory_agree_with_a_model_of_every_page,
)
from kvm.test_sharing import (  # noqa: F401
    test_a_page_is_shared_until_the_last_borrower_has_returned_it,
    test_all_see_at_once_what_one_of_them_writes,
    test_sharing_reaches_into_the_host_and_out_of_it,
    test_what_is_only_to_be_read_is_read_only_to_the_processor,
    test_what_is_shared_is_reclaimed_from_all_and_can_be_shared_anew,
)
from kvm.ways import IN_PLACE, named

from vmm import Monitor
from vmm.guest.abi import PAGE_SIZE, Hold, Operation
from vmm.kvm import Vm
from vmm.memory import mapping


@pytest.fixture
def mover() -> Iterator[str]:
    with named(IN_PLACE) as name:
        yield name


@pytest.fixture(scope="module")
def theatre() -> Iterator[Stage]:
    with named(IN_PLACE) as name, Monitor(mover=name, pool="64M") as monitor:
        yield Stage(monitor, "abc", queue=128)


def test_to_share_what_is_the_hosts_changes_no_mapping_of_the_host(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, _ = stage.puppets
    host = stage.monitor.host
    buffer = host.alloc(8 * PAGE_SIZE)
    buffer.write(b"as it was")
    calls: list[str] = []

    def counting(kind: object, name: str) -> None:
        real = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, lambda *args, **more: (calls.append(name), real(*args, **more))[1]
        )

    for name in ("show", "hide", "move", "protect", "empty", "store", "punch"):
        counting(mapping, name)
    counting(Vm, "set_user_memory_region")
    host.share(a.machine, buffer, writable=True)
    message = a.one()
    (place,) = spans_of(message)
    a.write(place.gpa, 0x41)
    assert a.do(Operation.RETURN, 0, place, length=8 * PAGE_SIZE).name == "OK"
    assert set(calls) == {"set_user_memory_region"}
    assert len(calls) == 2  # a memslot, made and deleted
    assert buffer.read(0, 2) == b"A\0"
    assert host.receive() is not None
    assert buffer.hold is Hold.OWNED
    host.release(buffer)


def test_machines_see_the_hosts_pages_in_place_each_with_its_rights(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    buffer = host.alloc(4 * PAGE_SIZE)
    host.share(a.machine, buffer, writable=True)
    host.share(b.machine, buffer)
    (at_a,), (at_b,) = (spans_of(puppet.one()) for puppet in (a, b))
    for page in range(4):
        a.write(at_a.gpa + page * PAGE_SIZE, page + 1)
        assert b.read(at_b.gpa + page * PAGE_SIZE) == [page + 1]
        assert buffer.read(page * PAGE_SIZE, 1) == bytes([page + 1])
    assert (a.holds(at_a.gpa), b.holds(at_b.gpa)) == (Hold.BORROWED, Hold.VIEWED)
    stage.monitor.audit(mappings=True)
    host.reclaim(buffer)
    assert {a.holds(at_a.gpa), b.holds(at_b.gpa)} == {Hold.REVOKED}
    stage.monitor.audit(mappings=True)
    host.send(a.machine, buffer)  # and moves as ever
    (own,) = spans_of(a.one())
    assert a.read(own.gpa) == [1]

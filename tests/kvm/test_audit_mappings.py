"""Monitors, what they have mapped, and how much they may."""

from __future__ import annotations

import pytest
from kvm.puppets import Stage

from vmm import Monitor, host
from vmm.ferry.books import LedgerError
from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.movers import MOVERS

pytestmark = pytest.mark.not_in_ept("what the process maps is the same, whatever translates")


@pytest.mark.parametrize("mover", MOVERS)
def test_the_audit_looks_at_every_window_if_it_is_to(mover: str) -> None:
    with Monitor(mover=mover, pool="64M") as monitor:
        stage = Stage(monitor, "ab", window="8M")
        a, b = stage.puppets
        (span,) = a.alloc(600)
        assert a.send(b, (span.gpa, 512)) == 0
        buffer = monitor.host.alloc(3 * PAGE_SIZE)
        assert monitor.audit(mappings=True) == monitor.audit()
        beyond = buffer.address + 8 * PAGE_SIZE  # where the host has nothing
        mapping.show(beyond, PAGE_SIZE, monitor._mover.pool.fd, 700 * PAGE_SIZE)
        assert monitor.audit()["owned"] == 603
        with pytest.raises(LedgerError, match=r"^host reaches frame 700 at page 8 \(1 pages"):
            monitor.audit(mappings=True)
        mapping.hide(beyond, PAGE_SIZE)
        monitor.audit(mappings=True)


def test_the_monitors_of_a_process_share_one_budget_of_mappings() -> None:
    with Monitor(pool="16M") as first:
        alone = first._exchange.ledger._pieces
        assert 2 * alone <= host.mapping_limit() // 2
        with Monitor(pool="16M") as second, Monitor(pool="16M") as third:
            each = [m._exchange.ledger._pieces for m in (first, second, third)]
            assert sum(each) <= alone
            assert min(each) > alone // 4
        assert first._exchange.ledger._pieces == alone

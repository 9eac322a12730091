"""To transmit and to wait with one exit: pf_call, pf_flush_wait, tests/guests/caller.c."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from kvm.puppets import Puppet

from vmm import Monitor
from vmm.ferry.events import Event
from vmm.guest import abi
from vmm.guest.abi import Bell

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]

T, TW = Bell.TRANSMIT, Bell.TRANSMIT_WAIT

# In the order of caller.c: how often a rings with what, waits alone apart, and how many messages c
# gets.
ACTS = {
    "call": ({TW: 3}, 0),
    "call_refused": ({TW: 1}, 0),
    "call_in_vain": ({TW: 2}, 2),
    "call_with_a_full_ring": ({T: 1, TW: 1}, abi.TX_ENTRIES),
    "call_after_a_post": ({TW: 2}, 2),
    "wait_refused": ({TW: 4}, 6),
    "wait_for_an_answer": ({TW: 1}, 0),
    "wait_with_nothing_posted": ({TW: 3}, 0),
    "wait_for_room": ({TW: 3}, 2),
    "wait_for_nonsense": ({TW: 2}, 2),
    "spoil_the_ring": ({TW: 1}, 0),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_is_transmitted_and_waited_for_takes_one_exit(
    open_monitor: Open, test_guest: Elf, act: str
) -> None:
    monitor = open_monitor(pool="64M")
    tags, queued = ACTS[act]
    a = monitor.spawn(test_guest("caller"), name="a", window="2M")
    b = monitor.spawn(test_guest("answerer"), name="b", window="2M")
    c = Puppet(monitor, "c", queue=2 if act == "wait_for_room" else abi.TX_ENTRIES)
    for other in (b, c.machine):
        monitor.connect(a, other)
    c.boot()
    c.idle()
    rung: Counter[int] = Counter()

    def count(event: Event) -> None:
        if event.kind == "exit" and event.fields["machine"] == "a":
            rung[event.fields["bell"]] += 1

    monitor.trace.listen(count)
    monitor.host.send(a, tag=list(ACTS).index(act))
    if act == "call_refused":
        monitor.host.send(a, tag=77)
    monitor.run(30)
    assert (a.fault, a.exit_code, b.fault) == (None, 0, None)
    assert {bell: n for bell, n in rung.items() if bell in (T, TW)} == tags
    assert len(c.inbox()) == queued  # which it has taken when a ended
    assert a.peer.sent == queued + b.peer.received

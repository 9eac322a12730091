"""Every doorbell in both rings: used where the canary could use it, refused where not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm import HostError, Monitor, host
from vmm.ferry.events import Event
from vmm.guest.abi import Bell, Doorbell
from vmm.host.choice import DOORBELLS, doorbell_name

Elf = Callable[[str], Path]
Open = Callable[..., Monitor]


@pytest.mark.parametrize(("ring", "name"), list(itertools.product((0, 3), DOORBELLS)))
def test_a_doorbell_carries_traffic_where_the_canary_has_used_it_and_is_refused_elsewhere(
    open_monitor: Open, guest_elf: Elf, ring: int, name: str
) -> None:
    works = name in {doorbell_name(bell) for bell in host.inspect().doorbells(ring)}
    if not works:
        with pytest.raises(HostError, match=rf"ring {ring} on this host"):
            open_monitor(ring=ring, doorbell=name)
        return
    monitor = open_monitor(ring=ring, doorbell=name)
    server, client = (
        monitor.spawn(guest_elf("echo_server")),
        monitor.spawn(guest_elf("echo_client")),
    )
    monitor.connect(server, client)
    monitor.run(30)
    assert (server.exit_code, client.exit_code) == (0, 0), (server.fault, client.fault)
    assert client.guest.vcpu.get_sregs().cs.dpl == ring


def test_at_least_one_doorbell_works_here_and_the_best_is_chosen(open_monitor: Open) -> None:
    facts = host.inspect()
    monitor = open_monitor()
    assert monitor.ring == facts.ring
    assert monitor.doorbell is facts.doorbells(facts.ring)[0]


def test_where_hypercalls_work_a_page_is_sent_in_registers_without_a_descriptor(
    open_monitor: Open, test_guest: Elf, mover: str
) -> None:
    """Elsewhere the same guest uses a descriptor: what the receiver gets is the same."""
    monitor = open_monitor(mover=mover)
    a = monitor.spawn(test_guest("forward_to_b"), name="a", window="4M")
    b = monitor.spawn(test_guest("increment_to_host"), name="b", window="4M")
    monitor.connect(a, b)
    bells: list[int] = []

    def look(event: Event) -> None:
        if event.kind == "exit" and event.fields["machine"] == "a":
            bells.append(event.fields["bell"])

    monitor.trace.listen(look)
    page = monitor.host.alloc(4096)
    page.write(b"\x41")
    monitor.host.send(a, page, tag=77)
    monitor.run(10)
    received = monitor.host.receive()
    assert received is not None
    assert (received.tag, received.length, received.buffers[0].read(0, 1)) == (77, 4096, b"\x42")
    by_hypercall = monitor.doorbell in (Doorbell.VMCALL, Doorbell.VMMCALL)
    sent_by = Bell.DIRECT if by_hypercall else Bell.TRANSMIT
    assert sent_by in bells
    assert (Bell.DIRECT in bells) == by_hypercall


def test_a_direct_bell_by_a_doorbell_without_registers_is_refused(
    open_monitor: Open, test_guest: Elf
) -> None:
    for bell in host.inspect().doorbells(host.inspect().ring):
        if bell in (Doorbell.PIO, Doorbell.MMIO):
            monitor = open_monitor(doorbell=doorbell_name(bell))
            machine = monitor.spawn(test_guest("bare_direct"), name="a", window="2M")
            monitor.run(10)
            assert machine.exit_code == 0, machine.fault

"""A signal, a debugger or a suspension of this process may end KVM_RUN at any time.

Also while a fault is being explained.
"""

from __future__ import annotations

import pytest
from kvm.puppets import Stage

from vmm import Monitor
from vmm.kvm import Exit, Intr, MemoryFault


def test_a_fault_has_its_address_though_the_runs_that_ask_for_it_are_interrupted(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    puppet, other = Stage(monitor, "ab").puppets
    (own,) = puppet.alloc(2)
    puppet.write(own.gpa, 1, 2)
    puppet.send(other, own)
    vcpu = puppet.machine.guest.vcpu
    run, in_vain = vcpu.run, [Intr(), Intr(), Intr()]
    exits: list[Exit] = []

    def interrupted() -> Exit:
        """Run, but for the first times after a fault that does not tell its address."""
        faulted = any(isinstance(exit_, MemoryFault) for exit_ in exits)
        exits.append(in_vain.pop() if faulted and in_vain else run())
        return exits[-1]

    monkeypatch.setattr(vcpu, "run", interrupted)
    puppet.touch(own.gpa + 4096 + 8, "write")

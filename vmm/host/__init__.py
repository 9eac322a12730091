"""What this host's KVM is and can do.

Everything that the program decides from a host's nature is decided here, from probes:

    system, node    what the kernel says of itself, and what the device is as a file
    advice          what to do about it (pure)
    device          /dev/kvm opened, or an error with that advice
    module          the vendor's module, and the back end
    canary          what a guest could do that was run
    copying         what it costs to copy small messages, and to move them: cached
    choice          ring, doorbell, mover and what is copied from that, and why (pure)
    memory, cgroup  how much memory there is, and how much of it is allowed
    facts           all of it put together, once per process
    limits          the kernel's limits, when they are reached
    quirks          what some hosts do differently, with the condition and the evidence (pure)
    hugepages, privilege    what was tried besides
"""

from vmm.host.device import DEVICE, open_kvm
from vmm.host.facts import Host, inspect, mapping_limit
from vmm.host.limits import reported
from vmm.host.memory import memory_available, pool_memory, total_memory
from vmm.host.module import Backend

__all__ = [
    "DEVICE",
    "Backend",
    "Host",
    "inspect",
    "mapping_limit",
    "memory_available",
    "open_kvm",
    "pool_memory",
    "reported",
    "total_memory",
]

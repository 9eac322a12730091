"""What this host's KVM is and can do.

Everything that the program decides from a host's nature is decided from here: `device` opens
/dev/kvm or says what to do, `canary` finds out by running a guest, `facts` puts it together once
per process, and `quirks` knows what some hosts do differently, with the evidence.
"""

from vmm.host.device import DEVICE, open_kvm
from vmm.host.facts import Backend, Host, inspect, memory_available, total_memory

__all__ = ["DEVICE", "Backend", "Host", "inspect", "memory_available", "open_kvm", "total_memory"]

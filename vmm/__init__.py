"""pageferry: virtual machines that talk by moving pages.

    from vmm import Monitor

    with Monitor() as m:
        a = m.spawn("a.elf", name="a", window="1G")
        b = m.spawn("b.elf", name="b", window="1G")
        m.connect(a, b)
        m.run()

The names below are loaded when they are first used, so that the command can answer a Ctrl-C, and
print its help, before all of it has been imported. For the same reason nothing is imported here.
"""

from __future__ import annotations

TYPE_CHECKING = False  # checkers take it for true, as they do typing's
if TYPE_CHECKING:
    from typing import Any

    from vmm.endpoint import Buffer, HostEndpoint, Received
    from vmm.engine.machine import Machine, State
    from vmm.errors import (
        AccessError,
        BusyError,
        CallCancelled,
        CallCrash,
        CallError,
        CallExit,
        CallTimeout,
        ClosedError,
        ConfigError,
        GuestError,
        GuestFault,
        GuestImageError,
        HandleError,
        HostError,
        PageferryError,
        Place,
        ResourceError,
    )
    from vmm.guest.abi import Hold, Operation, Status
    from vmm.linux.machine import LinuxMachine
    from vmm.monitor import Monitor
    from vmm.sandbox.library import Sandbox
    from vmm.sandbox.pool import Pool

__version__ = "0.1.0"

_HOMES = {
    "vmm.endpoint": ("Buffer", "HostEndpoint", "Received"),
    "vmm.errors": (
        *("CallCancelled", "CallCrash", "CallError", "CallExit", "CallTimeout"),
        *("AccessError", "BusyError", "ClosedError", "ConfigError", "GuestError", "GuestFault"),
        *("GuestImageError", "HandleError", "HostError", "PageferryError", "Place"),
        "ResourceError",
    ),
    "vmm.engine.machine": ("Machine", "State"),
    "vmm.guest.abi": ("Hold", "Operation", "Status"),
    "vmm.linux.machine": ("LinuxMachine",),
    "vmm.monitor": ("Monitor",),
    "vmm.sandbox.library": ("Sandbox",),
    "vmm.sandbox.pool": ("Pool",),
}

__all__ = [
    "AccessError",
    "Buffer",
    "BusyError",
    "CallCancelled",
    "CallCrash",
    "CallError",
    "CallExit",
    "CallTimeout",
    "ClosedError",
    "ConfigError",
    "GuestError",
    "GuestFault",
    "GuestImageError",
    "HandleError",
    "Hold",
    "HostEndpoint",
    "HostError",
    "LinuxMachine",
    "Machine",
    "Monitor",
    "Operation",
    "PageferryError",
    "Place",
    "Pool",
    "Received",
    "ResourceError",
    "Sandbox",
    "State",
    "Status",
    "__version__",
]


def __getattr__(name: str) -> Any:
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

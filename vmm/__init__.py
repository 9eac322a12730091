"""pageferry: virtual machines that talk by moving pages.

from vmm import Monitor

with Monitor() as m:
    a = m.spawn("a.elf", name="a", window="1G")
    b = m.spawn("b.elf", name="b", window="1G")
    m.connect(a, b)
    m.run()
"""

from vmm.endpoint import Buffer, HostEndpoint, Received
from vmm.errors import (
    ClosedError,
    ConfigError,
    GuestError,
    GuestFault,
    GuestImageError,
    HostError,
    PageferryError,
    Place,
    ResourceError,
)
from vmm.machine import Machine, State
from vmm.monitor import Monitor

__version__ = "0.1.0"

__all__ = [
    "Buffer",
    "ClosedError",
    "ConfigError",
    "GuestError",
    "GuestFault",
    "GuestImageError",
    "HostEndpoint",
    "HostError",
    "Machine",
    "Monitor",
    "PageferryError",
    "Place",
    "Received",
    "ResourceError",
    "State",
    "__version__",
]

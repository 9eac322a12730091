"""What only root may see, tried: nothing in pageferry needs it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import NamedTuple

from vmm.memory.pagemap import frame_number

_SIZE_BUFFER = 10  # SYSLOG_ACTION_SIZE_BUFFER


class Privileged(NamedTuple):
    """Something that needs a privilege, whether we have it, and what is missing without it."""

    what: str
    available: bool
    without: str


def privileged(parameters: Mapping[str, str | None]) -> tuple[Privileged, ...]:
    """Try it all. `parameters` are the modules', None for those that could not be read."""
    hidden = [name for name, value in parameters.items() if value is None]
    return (
        Privileged(
            "physical frame numbers (CAP_SYS_ADMIN)",
            _frames(),
            "the demo shows all but them; as root: sudo pageferry demo",
        ),
        Privileged(
            "the parameters of KVM's modules",
            not hidden,
            f"the back end may be misnamed; as root: {_show(hidden)}",
        ),
        Privileged(
            "the kernel's log (CAP_SYSLOG, or kernel.dmesg_restrict=0)",
            _log(),
            "what KVM found at boot is not shown; as root: sudo dmesg | grep -i kvm",
        ),
    )


def _show(names: list[str]) -> str:
    paths = (name.replace(".", "/parameters/") for name in names)
    return " ".join(["sudo grep .", *(f"/sys/module/{path}" for path in paths)])


def _frames() -> bool:
    page = ctypes.create_string_buffer(1)
    return frame_number(ctypes.addressof(page)) is not None


def _log() -> bool:
    """Ask for the log's size, which needs what reading it all does (syslog(2))."""
    return int(ctypes.CDLL(None).klogctl(_SIZE_BUFFER, None, 0)) >= 0

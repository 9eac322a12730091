"""The host that a bench was measured on, as its JSON has it."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

from vmm import __version__
from vmm.host import inspect, total_memory
from vmm.host.choice import doorbell_name
from vmm.host.system import read_text

LANE = "PAGEFERRY_LANE"  # set where the processor is an emulator's; see vmm/nested/run.sh
_THP = "/sys/kernel/mm/transparent_hugepage"


def describe() -> dict[str, Any]:
    """Return what there is to know about this host. Raises HostError if it cannot run machines."""
    host = inspect()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "pageferry": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "cpu": cpu_model(read_text("/proc/cpuinfo") or ""),
        "cores": len(os.sched_getaffinity(0)),
        "memory": total_memory(),
        "backend": host.backend.value,
        "ring": host.ring,
        "doorbell": doorbell_name(host.doorbell(host.ring)),
        "mover": host.mover,
        "thp": {name: chosen(read_text(f"{_THP}/{name}")) for name in ("enabled", "shmem_enabled")},
        "emulated": LANE in os.environ,
        "lane": os.environ.get(LANE),
    }


def cpu_model(cpuinfo: str) -> str | None:
    """Return the first processor's name in /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return None


def chosen(setting: str | None) -> str | None:
    """Return the chosen word of a setting of the kernel's: "always [madvise] never"."""
    return None if setting is None else setting.partition("[")[2].partition("]")[0] or None

"""The doctor: names the host, says what will be used and why, and for every problem what to do.

It looks, measures, runs canaries and rehearses the demo, and changes nothing; it never needs root.
What it finds out is what `vmm.host` decides by.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from vmm.command.demo import DEFAULT_FILE, run_demo
from vmm.errors import GuestFault, HostError, PageferryError
from vmm.guest.abi import Doorbell
from vmm.host import DEVICE, Host, advice, inspect, open_kvm
from vmm.host.advice import Problem
from vmm.host.choice import DOORBELLS, doorbell_name, loop_ns, stopped
from vmm.host.device import NEEDED, USED
from vmm.host.hugepages import HugePages, huge_pages
from vmm.host.module import Backend, read_parameters, read_version
from vmm.host.node import Node, look
from vmm.host.privilege import Privileged, privileged
from vmm.host.quirks import Probed, Quirk, applying
from vmm.host.system import System, read_system
from vmm.kvm import uapi
from vmm.monitor import Monitor

_REHEARSAL_SECONDS = 30.0
_WINDOW = 1 << 30  # the demo's, unless asked for another
_POOL = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """What the device itself answers; nothing is known if it cannot be opened.

    capabilities  by name: what the kernel says, and what it is for
    """

    api_version: int | None = None
    memslots: int | None = None
    capabilities: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Examination:
    """What the doctor found. `verdict` is "ok", "degraded" or "unusable".

    node        the device as a file
    parameters  of KVM's modules, by "module.parameter"; None for what we may not read
    version     the vendor module's own, if it has one
    host        the facts the monitor decides by; None if KVM cannot be used
    demo_ms     how long the demo took; None if it does not run
    privileged  what would need root, and whether we have it
    """

    verdict: str
    node: Node
    system: System
    parameters: dict[str, str | None]
    version: str | None
    kernel: Kernel
    host: Host | None
    demo_ms: float | None
    huge_pages: HugePages
    quirks: tuple[Quirk, ...]
    privileged: tuple[Privileged, ...]
    problems: tuple[Problem, ...]

    @property
    def ring0(self) -> str:
        """What ring 0 is here: "native", "emulated", or "absent" if no guest runs at all."""
        if self.host is None:
            return "absent"
        return "native" if self.host.native(0) else "emulated"

    def ring0_evidence(self) -> str:
        """Return how it was measured, or why it could not be."""
        if self.host is None:
            return "no guest could be run"
        speeds = [f"{ns:,.1f} ns in {ring}" for ring, ns in self.loop_ns().items()]
        speed = f"; a round of a loop takes {', '.join(speeds)}" if speeds else ""
        if self.host.native(0):
            return f"the canary came back whole and in time, SSE included{speed}"
        return f"the canary in it: {stopped(self.host.songs, 0)}{speed}"

    def loop_ns(self) -> dict[str, float]:
        """Return the nanoseconds of a loop's round, by "ring 0" and "ring 3"."""
        songs = self.host.songs if self.host else {}
        times = {f"ring {ring}": loop_ns(songs, ring) for ring in (0, 3)}
        return {ring: time for ring, time in times.items() if time is not None}

    def doorbells(self) -> dict[str, bool]:
        """Return which doorbells a canary could use, in the ring that will be used."""
        host = self.host
        working = {doorbell_name(bell) for bell in host.doorbells(host.ring)} if host else set()
        return {name: name in working for name in DOORBELLS}

    def exit_us(self) -> dict[str, float]:
        """Return the microseconds of an exit and re-entry, by "ring 3 mmio" and the like."""
        songs = self.host.songs if self.host else {}
        return {
            f"ring {ring} {doorbell_name(bell)}": song.exit_us
            for (ring, bell), song in songs.items()
            if song.exit_us is not None
        }

    def release(self) -> str:
        """Return the operating system's name, its kernel's release, and the architecture."""
        return f"{os.uname().sysname} {self.system.release} {os.uname().machine}"

    def as_json(self) -> dict[str, Any]:
        """Return the object that `pageferry doctor --json` prints."""
        return {
            "verdict": self.verdict,
            **self._environment(),
            **self._measured(),
            **self._choices(),
            "quirks": [quirk.as_json() for quirk in self.quirks],
            "needs_root": [item._asdict() for item in self.privileged],
            "problems": [problem._asdict() for problem in self.problems],
            "elsewhere": advice.ELSEWHERE,
        }

    def _environment(self) -> dict[str, Any]:
        return {
            "device": self.node.path,
            "permissions": self.node.permissions() or None,
            "permitted": self.node.allowed,
            "kernel": self.release(),
            "cpu": {
                "vendor": self.system.vendor,
                "virtualization": self.system.virtualization,
                "hypervisor": self.system.in_a_vm,
            },
            "driver": self.system.driver,
            "module": self.system.module,
            "module_version": self.version,
            "parameters": self.parameters,
            "nested": self.system.in_a_vm,
            "api_version": self.kernel.api_version,
            "memslots": self.kernel.memslots,
            "capabilities": {
                name: {"answer": answer, "purpose": purpose}
                for name, (answer, purpose) in self.kernel.capabilities.items()
            },
        }

    def _measured(self) -> dict[str, Any]:
        return {
            "backend": self.host.backend.value if self.host else None,
            "ring0": self.ring0,
            "ring0_evidence": self.ring0_evidence(),
            "loop_ns": self.loop_ns(),
            "doorbells": self.doorbells(),
            "exit_us": self.exit_us(),
            "huge_pages": self.huge_pages._asdict(),
            "demo_ms": self.demo_ms,
        }

    def _choices(self) -> dict[str, Any]:
        host = self.host
        if host is None:
            return {**dict.fromkeys(("ring", "doorbell", "mover", "copy_below")), "why": {}}
        return {
            "ring": host.ring,
            "doorbell": doorbell_name(host.doorbell(host.ring)),
            "mover": host.mover,
            "copy_below": host.copy_below,
            "why": host.why(),
        }


def examine(device: str = DEVICE) -> Examination:
    """Examine the host. Raises nothing that the host is to blame for: that is what is reported."""
    system, pages = read_system(), huge_pages()
    parameters = read_parameters(system)
    problems: list[Problem] = []
    kernel, host = _open(device, problems)
    demo_ms = None if host is None else _rehearse(device, problems)
    quirks: tuple[Quirk, ...] = ()
    if host is not None:
        fault_info = kernel.capabilities["KVM_CAP_MEMORY_FAULT_INFO"][0] > 0
        quirks = applying(Probed(host, pages, fault_info, parameters))
        problems += _shortcomings(host, system)
    if demo_ms is not None:
        problems += advice.no_huge_pages(*pages)
    return Examination(
        verdict="unusable" if demo_ms is None else "degraded" if problems else "ok",
        node=look(device),
        system=system,
        parameters=parameters,
        version=read_version(system),
        kernel=kernel,
        host=host,
        demo_ms=demo_ms,
        huge_pages=pages,
        quirks=quirks,
        privileged=privileged(parameters),
        problems=tuple(problems),
    )


def _open(device: str, problems: list[Problem]) -> tuple[Kernel, Host | None]:
    """Ask the device, and run the canaries. What goes wrong is added to the problems."""
    kernel = Kernel()
    try:
        with open_kvm(device) as kvm:
            kernel = Kernel(
                kvm.api_version(),
                kvm.check_extension(uapi.KVM_CAP_NR_MEMSLOTS),
                {c.name: (kvm.check_extension(c.number), c.purpose) for c in (*NEEDED, *USED)},
            )
        return kernel, inspect(device)
    except (PageferryError, OSError, MemoryError, RuntimeError) as error:
        problems.append(_problem(error))
        return kernel, None


def _problem(error: BaseException) -> Problem:
    if isinstance(error, HostError):
        return Problem(error.what, error.fix)
    if isinstance(error, GuestFault):
        return Problem(str(error), "look at the last lines of: pageferry demo --trace FILE")
    if isinstance(error, PageferryError):
        what, _, fix = str(error).rpartition(": ")
        return Problem(what, fix)
    return Problem(
        str(error) or type(error).__name__,
        "raise the limits of this process (ulimit -a) if they are low; else see the kernel's log "
        "(sudo dmesg)",
    )


def _rehearse(device: str, problems: list[Problem]) -> float | None:
    """Run the demo as it would run here; return its milliseconds, or None if it does not."""
    start = time.perf_counter()
    try:
        with Monitor(device=device, pool=_POOL, console=lambda name, line: None) as monitor:
            report = run_demo(
                monitor, DEFAULT_FILE, _WINDOW, _REHEARSAL_SECONDS, lambda what, done, total: None
            )
    except (PageferryError, OSError, MemoryError, RuntimeError) as error:
        found = _problem(error)
        problems.append(Problem(f"the demo does not run: {found.what}", found.fix))
        return None
    if not report.ok:
        what = "the demo runs, but what it claims is not true here"
        problems.append(Problem(what, "look at its report: pageferry demo --trace FILE"))
        return None
    return round((time.perf_counter() - start) * 1e3, 1)


def _shortcomings(host: Host, system: System) -> list[Problem]:
    """Return what works, but could work better."""
    if not host.native(0):
        return [advice.emulated_ring(system)]
    found = []
    if host.backend is Backend.SHADOW:
        found.append(advice.shadow_paging(system))
    if not {Doorbell.VMCALL, Doorbell.VMMCALL} & set(host.doorbells(0)):
        offered = any(doorbell_name(bell) == "hypercall" for _, bell in host.songs)
        found.append(advice.no_hypercall(host.kernel, offered))
    return found

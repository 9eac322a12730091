"""The doctor's findings, as people see them on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape

from vmm.command.doctor import Examination
from vmm.host.advice import ELSEWHERE
from vmm.host.canary import Song
from vmm.host.choice import doorbell_name
from vmm.host.module import Backend
from vmm.sizes import format_size

_SUMMARIES = {
    "ok": "machines run as they should",
    "degraded": "machines run; it could be better",
    "unusable": "the demo does not run on this host",
}
_BACKENDS = {
    Backend.EPT: "EPT: the CPU translates guests' addresses (VMX)",
    Backend.NPT: "NPT: the CPU translates guests' addresses (SVM)",
    Backend.SHADOW: "shadow paging: no EPT and no NPT, the kernel keeps page tables of its own",
}
_WIDTH = 14


def show_examination(console: Console, found: Examination) -> None:
    """Print what the doctor found: the host, what will be used and why, and what to mend."""
    _say(console, f"[bold]{found.verdict}[/]: {_SUMMARIES[found.verdict]}")
    for name, value in _findings(found):
        _say(console, f"  {name:{_WIDTH}}{escape(value)}")
    if found.host is not None:
        _show_measured(console, found)
        _show_choices(console, found)
    _show_known(console, found)
    _show_needs_root(console, found)
    _show_problems(console, found)


def _findings(found: Examination) -> Iterator[tuple[str, str]]:
    yield "device", _device(found)
    yield "kernel", found.release()
    yield "CPU", _cpu(found)
    yield "KVM", _kvm(found)
    if found.host is not None:
        yield "back end", _BACKENDS[found.host.backend]
        yield "ring 0", f"{found.ring0}: {found.ring0_evidence()}"
    anonymous, memfd = ("yes" if there else "no" for there in found.huge_pages)
    yield "huge pages", f"anonymous memory {anonymous}, memfd {memfd}"
    if found.demo_ms is not None:
        yield "demo", f"rehearsed: it ran, and was right, in {found.demo_ms:.0f} ms"


def _device(found: Examination) -> str:
    node = found.node
    if node.mode is None:
        return f"{node.path}: not there"
    may = "you may" if node.allowed else "you may not"
    return f"{node.path}: {node.permissions()}, {may} read and write it"


def _cpu(found: Examination) -> str:
    system = found.system
    support = system.virtualization or "neither vmx nor svm"
    where = "itself in a VM" if system.in_a_vm else "not in a VM"
    return f"{system.vendor or 'of unknown make'}, {support}, {where}"


def _kvm(found: Examination) -> str:
    system, kernel = found.system, found.kernel
    module = f"module {system.module}" if system.module else "no vendor module"
    parts = [f"{module} {found.version}" if found.version else module]
    driver = {True: "device registered", False: "no device registered", None: ""}
    parts.append(driver[system.driver])
    if kernel.api_version is not None:
        parts.append(f"API version {kernel.api_version}, {kernel.memslots} memslots")
    parts += [
        f"{name}={'?' if value is None else value}" for name, value in found.parameters.items()
    ]
    return ", ".join(part for part in parts if part)


def _show_measured(console: Console, found: Examination) -> None:
    assert found.host is not None
    _say(console, "[bold]doorbells, each tried by a canary[/]")
    for (ring, bell), song in found.host.songs.items():
        where = f"ring {ring}, {doorbell_name(bell)}"
        _say(console, f"  {_tick(song.exit_us is not None)} {where:18}{escape(_song(song))}")
    _say(console, "[bold]capabilities[/]")
    for name, (answer, purpose) in found.kernel.capabilities.items():
        _say(console, f"  {_tick(answer > 0)} {name} = {answer}: {escape(purpose)}")


def _song(song: Song) -> str:
    if song.exit_us is None:
        return f"silent: {song.why}"
    parts = [f"{song.exit_us:.0f} µs for exit and re-entry"]
    if song.loop_ns is not None:
        parts.append(f"{song.loop_ns:,.1f} ns for a round of a loop")
    return ", ".join([*parts, f"and then {song.why}"] if song.why else parts)


def _show_choices(console: Console, found: Examination) -> None:
    _say(console, "[bold]what will be used, and why[/]")
    chosen = found.as_json()
    for name, why in chosen["why"].items():
        _say(console, f"  {_choice(name, chosen[name])}: {escape(why)}")


def _choice(name: str, value: Any) -> str:
    if name == "copy_below":
        return f"exchanges below {format_size(value)} copied" if value else "no exchange copied"
    return f"ring {value}" if name == "ring" else f"{value} {name}"


def _show_known(console: Console, found: Examination) -> None:
    if found.quirks:
        _say(console, "[bold]quirks of this host, and what is done about them[/]")
    for quirk in found.quirks:
        _say(console, f"  - {quirk.name}: {escape(quirk.what)}")
        _say(console, f"    seen: {escape(quirk.evidence)}")
        _say(console, f"    so: {escape(quirk.answer)}")


def _show_needs_root(console: Console, found: Examination) -> None:
    _say(console, "[bold]what would need root, and is not needed[/]")
    for item in found.privileged:
        rest = "available" if item.available else item.without
        _say(console, f"  {_tick(item.available)} {escape(item.what)}: {escape(rest)}")


def _show_problems(console: Console, found: Examination) -> None:
    if found.problems:
        _say(console, "[bold]what to mend[/]")
    for problem in found.problems:
        _say(console, f"  [red]✗[/] {escape(problem.what)}")
        _say(console, f"    {escape(problem.fix)}")
    if found.verdict == "unusable":
        _say(console, f"[bold]meanwhile[/], in an emulator and without any KVM: {ELSEWHERE}")


def _say(console: Console, text: str) -> None:
    # Left to the terminal to wrap: a file or a pipe gets one line for one.
    console.print(text, highlight=False, soft_wrap=True)


def _tick(good: bool) -> str:
    return "[green]✓[/]" if good else "[red]✗[/]"

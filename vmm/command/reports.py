"""What people see of the demo on a terminal: its progress and its report."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vmm.command.demo import Progress as Tell
from vmm.command.demo import Report, Step
from vmm.guest.text import printable
from vmm.monitor import Monitor
from vmm.sizes import format_size

_POLL = 0.05  # seconds between looks at what the guests say of their progress


@contextlib.contextmanager
def live_progress(console: Console, monitor: Monitor, *, enabled: bool) -> Iterator[Tell]:
    """Show bars for what the host tells of its work, and the guests of theirs."""
    if not (enabled and console.is_terminal):
        yield lambda what, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(_shown(what), total=total)
            bars.update(tasks[what], completed=done)

        with _polling(monitor, tell):
            yield tell


@contextlib.contextmanager
def _polling(monitor: Monitor, tell: Tell) -> Iterator[None]:
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL):
            for machine in list(monitor.machines.values()):
                done, total = machine.progress
                if total:
                    tell(f"{machine.name} works on it in place", min(done, total), total)

    thread = threading.Thread(target=poll, name="pageferry-progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def show_report(console: Console, report: Report, lines: list[tuple[str, str]]) -> None:
    """Print what happened, step by step, and the proofs."""
    _say(
        console,
        f"[bold]{_shown(report.file)}[/], {format_size(report.size)}: "
        f"{report.backend} back end, ring {report.ring}, "
        f"{report.doorbell} doorbell, {report.mover} mover",
    )
    for name, line in lines:
        _say(console, f"  [cyan]{_shown(name)}[/]: {_shown(line)}")
    console.print(_steps(report.steps))
    _show_change(console, report)
    _show_proofs(console, report)


def _steps(steps: list[Step]) -> Table:
    table = Table(title="what moved", title_justify="left")
    for heading in ("step", "what", "from", "to", "address", "pages", "owner now", "µs"):
        table.add_column(heading, justify="right" if heading in ("step", "pages", "µs") else "left")
    for step in steps:
        moved = step.gpa is not None
        table.add_row(
            str(step.step),
            step.op,
            step.from_,
            step.to,
            f"{step.gpa:#x}" if step.gpa is not None else "in the descriptor",
            str(step.pages) if moved else "-",
            (step.owner or "in flight") if moved else "-",
            f"{step.us:.0f}",
        )
    return table


def _show_change(console: Console, report: Report) -> None:
    _say(console, "[bold]what b did, in place[/]")
    _say(console, f"  before  {_preview(report.before)}")
    _say(console, f"  after   {_preview(report.after)}")
    _say(console, f"  {_tick(report.change_ok)} every byte of what came back is as it should be")
    _say(
        console, f"  {_tick(report.digest_ok)} SHA-256 {report.sha256}, as the host's hashlib says"
    )


def _show_proofs(console: Console, report: Report) -> None:
    _say(console, "[bold]is it true?[/]")
    if report.pfn_before is None:
        _say(
            console,
            "  - the physical frame number is for root's eyes only: run it as root to see it",
        )
    else:
        same = report.pfn_before == report.pfn_after
        _say(
            console,
            f"  {_tick(same)} same physical page: frame {report.pfn_before:#x} when it was a's, "
            f"frame {report.pfn_after or 0:#x} when it was b's",
        )
    fault = report.sender_fault
    if fault is None:
        what = "a touched a page after sending it, and was not stopped by a fault"
    else:
        address, rip = _number(fault["gpa"]), _number(fault["rip"])
        what = (
            f"{fault['machine']} touched a page after sending it, and was stopped: "
            f"{fault['access']} of {address}, rip {rip}, {_shown(fault['place'])}"
        )
    _say(console, f"  {_tick(report.fault_ok)} {what}")
    _say(console, f"  {_tick(report.touched_ok)} b has that page, and it says what a sent")


def _say(console: Console, text: str) -> None:
    # Left to the terminal to wrap: a file or a pipe gets one line for one.
    console.print(text, highlight=False, soft_wrap=True)


def _shown(text: str) -> str:
    """Return a text that somebody else has chosen without what steers a terminal, or rich."""
    return escape(printable(text))


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:#x}"


def _preview(data: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return escape(text)


def _tick(good: bool) -> str:
    return "[green]✓[/]" if good else "[red]✗[/]"

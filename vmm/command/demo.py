"""The demo: a file goes from one machine to another by its pages, and comes back changed.

Three peers take part: the host, which has the file, and two machines, `a` and `b`. The guests'
sides are guests/demo_a.c and guests/demo_b.c. What is shown is what the monitor's trace said while
it happened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmm.endpoint import Buffer, Received
from vmm.engine.machine import Machine
from vmm.errors import AccessError, ConfigError, PageferryError, ResourceError
from vmm.ferry.events import Event
from vmm.guest.abi import Status
from vmm.guest.bundled import ROOT, bundled_guest
from vmm.guest.demo_tags import DemoTag
from vmm.host import memory
from vmm.host.choice import doorbell_name
from vmm.memory.pagemap import kept_in_place
from vmm.monitor import Monitor
from vmm.sizes import format_size

DEFAULT_FILE = ROOT / "include" / "pageferry.h"
_OWN_MEMORY = 16 << 20  # bytes, besides the file's: two machines and this program
_PREVIEW = 48  # bytes of the file shown before and after
_TOUCHED = b"this page has been sent"

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One move of the trace: pages left a window ("send"), or came into one ("deliver").

    gpa       of the first page, in the window of `from_` or `to` respectively; None if no page
              moved
    us        microseconds that the monitor took for it
    owner     who owns the pages now: nobody while they are in flight, in which they are not if the
              receiver waits for them
    """

    step: int
    op: str
    from_: str
    to: str
    gpa: int | None
    pages: int
    us: float
    owner: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the step as an object for `--json`."""
        fields = dataclasses.asdict(self)
        return {"from" if name == "from_" else name: value for name, value in fields.items()}


@dataclasses.dataclass(slots=True)
class Report:
    """What the demo did and saw. `as_json` is the `--json` object; the previews are for people."""

    file: str
    size: int
    backend: str
    ring: int
    doorbell: str
    mover: str
    sha256: str = ""
    digest_ok: bool = False
    change_ok: bool = False
    touched_ok: bool = False
    steps: list[Step] = dataclasses.field(default_factory=list)
    sender_fault: dict[str, Any] | None = None
    pfn_before: int | None = None
    pfn_after: int | None = None
    before: bytes = b""
    after: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether everything the demo claims was seen to be true."""
        same_frame = self.pfn_before == self.pfn_after
        right = self.digest_ok and self.change_ok and self.touched_ok
        return right and same_frame and self.fault_ok

    @property
    def fault_ok(self) -> bool:
        """Whether `a` was stopped at the address that it had last sent."""
        sent = [step.gpa for step in self.steps if (step.op, step.from_) == ("send", "a")]
        return self.sender_fault is not None and sent[-1:] == [self.sender_fault["gpa"]]

    def as_json(self) -> dict[str, Any]:
        """Return the object that `pageferry demo --json` prints."""
        hidden = ("before", "after", "steps")
        fields = {
            "bytes" if field.name == "size" else field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in hidden
        }
        return {**fields, "steps": [step.as_json() for step in self.steps]}


class _Watcher:
    """Turns the monitor's events into steps, and looks at the file's first frame on either side."""

    def __init__(self, report: Report, machines: dict[str, Machine]) -> None:
        self._report = report
        self._machines = machines

    def __call__(self, event: Event) -> None:
        if event.kind not in ("send", "deliver"):
            return
        fields, extents = event.fields, event.fields["extents"]
        there = extents and (event.kind == "deliver" or fields["brought"])
        step = Step(
            step=len(self._report.steps) + 1,
            op=event.kind,
            from_=fields["sender"],
            to=fields["receiver"],
            gpa=extents[0]["gpa"] if extents else None,
            pages=sum(extent["pages"] for extent in extents),
            us=round(fields["took_us"], 1),
            owner=fields["receiver"] if there else None,
        )
        self._report.steps.append(step)
        if event.kind == "deliver" and fields["tag"] == DemoTag.FILE and step.gpa is not None:
            if step.to == "a":
                self._report.pfn_before = self._frame("a", step.gpa)
            elif step.to == "b":
                self._report.pfn_after = self._frame("b", step.gpa)

    def _frame(self, name: str, gpa: int) -> int | None:
        """Return a page's frame; None too if, since it was told of, the page has gone on."""
        try:
            return self._machines[name].frame_number(gpa)
        except AccessError:
            return None


def check_file(path: Path, window: int) -> int:
    """Return the file's size in bytes.

    Raises ConfigError or ResourceError if the demo cannot take it.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):  # opening another kind could wait for ever
            path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}: give a file that you may read"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path}: not a regular file: give one that is")
    if status.st_size == 0:
        raise ConfigError(f"{path}: is empty: give a file of at least one byte")
    if status.st_size > window:
        raise ConfigError(
            f"{path}: {format_size(status.st_size)} do not fit "
            f"the window of {format_size(window)}: "
            "give a larger one (--window)"
        )
    there = memory.available()
    if status.st_size + _OWN_MEMORY > there.bytes:
        where = f" within {there.bound}" if there.bound else ""
        raise ResourceError(
            f"{path}: {format_size(status.st_size)}, and {format_size(_OWN_MEMORY)} to work with, "
            f"are more than the {format_size(there.bytes)} of memory available{where}: "
            "free some, or give a smaller file"
        )
    return status.st_size


def run_demo(
    monitor: Monitor, path: Path, window: int, timeout: float | None, progress: Progress
) -> Report:
    """Run the demo in a fresh monitor; return what was seen.

    progress  called with what is being done, and how much of it: done, total, in bytes

    Raises PageferryError if it cannot be done; that something came out wrong is in the report
    instead.
    """
    size = check_file(path, window)
    report = Report(
        str(path),
        size,
        monitor.backend,
        monitor.ring,
        doorbell_name(monitor.doorbell),
        monitor.mover,
    )
    a = monitor.spawn(bundled_guest("demo_a"), name="a", window=window)
    b = monitor.spawn(bundled_guest("demo_b"), name="b", window=window)
    monitor.connect(a, b)
    monitor.trace.listen(_Watcher(report, monitor.machines))

    buffer, expected, digest = _load(monitor, path, size, progress)
    report.before = buffer.read(0, min(_PREVIEW, size))
    with kept_in_place(buffer.address):  # the frame is looked at twice, with hashes in between
        monitor.host.send(a, buffer, tag=DemoTag.FILE)
        result = _run(monitor, timeout, a, b)
    _verify(report, result, expected, digest, progress)
    _prove(monitor, report, a, b, timeout)
    return report


def _load(
    monitor: Monitor, path: Path, size: int, progress: Progress
) -> tuple[Buffer, bytes, bytes]:
    """Read the file into the host's pages.

    Return them, the changed file's digest and the file's own.
    """
    buffer = monitor.host.alloc(size)
    plain, swapped = hashlib.sha256(), hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            count = buffer.fill(file, done)
            if not count:
                raise ConfigError(f"{path}: became shorter while it was read: try again")
            chunk = buffer.read(done, count)
            plain.update(chunk)
            swapped.update(chunk.swapcase())
            done += count
            progress("reading the file into the host's pages", done, size)
    return buffer, swapped.digest(), plain.digest()


def _run(monitor: Monitor, timeout: float | None, a: Machine, b: Machine) -> Received:
    """Let the machines work until the host has its answer."""
    monitor.run(timeout)
    received = monitor.host.receive()
    if received is not None and received.status is Status.OK:
        return received
    faults = [machine.fault for machine in (a, b) if machine.fault is not None]
    if not faults:
        raise PageferryError("the machines stopped without an answer: look at --trace FILE")
    # One's panic or time-out may be but the consequence of the other's fault.
    raise min(faults, key=lambda fault: fault.kind in ("panic", "timeout"))


def _verify(
    report: Report, result: Received, swapped: bytes, plain: bytes, progress: Progress
) -> None:
    """Check what came back.

    The digest the guest computed, and the contents as the guest changed them.
    """
    report.sha256 = result.payload.hex()
    report.digest_ok = result.payload == plain
    report.after = result.buffers[0].read(0, min(_PREVIEW, report.size))
    seen, done = hashlib.sha256(), 0
    for chunk in result.buffers[0].chunks():
        seen.update(chunk)
        done += len(chunk)
        progress("checking what came back", done, report.size)
    report.change_ok = result.length == report.size and seen.digest() == swapped


def _prove(monitor: Monitor, report: Report, a: Machine, b: Machine, timeout: float | None) -> None:
    """Let `a` send one page more and then touch it.

    `b` has it by then, and sends it to the host.
    """
    page = monitor.host.alloc(len(_TOUCHED))
    page.write(_TOUCHED)
    monitor.host.send(a, page, payload=b"w", tag=DemoTag.TOUCH)
    kept = _run(monitor, timeout, a, b)
    report.touched_ok = kept.buffers[0].read() == _TOUCHED
    if a.fault is not None and a.fault.kind == "access":
        report.sender_fault = {
            "machine": a.fault.machine,
            "gpa": a.fault.address,
            "access": a.fault.access,
            "rip": a.fault.rip,
            "place": str(a.fault.place),
        }
    monitor.host.send(b, tag=DemoTag.END)
    monitor.run(timeout)

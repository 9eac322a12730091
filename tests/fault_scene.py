"""Where the fault guests are tested.

The guest, a peer for it, and innocent machines beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.endpoint import Received
from vmm.engine.machine import Machine
from vmm.guest.bundled import bundled_guest
from vmm.monitor import Monitor

PAGE = 4096
MOVERS = ("memfd", "remap", "slots")
SOURCES = Path(__file__).resolve().parent.parent / "guests" / "faults"


def line_of(name: str) -> int:
    """The line of a fault guest's source that is marked as the one that faults."""
    lines = (SOURCES / f"{name}.c").read_text().splitlines()
    [marked] = [n for n, line in enumerate(lines, 1) if "/* faults here */" in line]
    return marked


class Scene:
    """A monitor `m` with a fault guest, a `peer` that takes what it sends, and two innocents.

    lines     what machines have logged: (name, line)
    replies   what the host has received from the guest
    """

    def __init__(self, m: Monitor, name: str, lines: list[tuple[str, str]]) -> None:
        self.m = m
        self.lines = lines
        self.replies: list[Received] = []
        self.guest = m.spawn(bundled_guest(f"faults/{name}"), name="guest")
        self.peer = m.spawn(bundled_guest("faults/sink"), name="peer")
        m.connect(self.guest, self.peer)
        self.innocents = self.spawn_innocents("innocent")

    def spawn_innocents(self, name: str) -> Machine:
        """Two machines that pass a page from the host on and back to it; returns the first."""
        first, second = (
            self.m.spawn(bundled_guest("faults/passer_by"), name=f"{name} {n}") for n in (1, 2)
        )
        self.m.connect(first, second, both=False)
        return first

    def give(self, letters: bytes) -> dict[str, int]:
        """Send the guest a page full of each letter, in one message.

        Returns the audit before that.
        """
        buffer = self.m.host.alloc(len(letters) * PAGE)
        buffer.write(b"".join(bytes([letter]) * PAGE for letter in letters))
        before = self.m.audit()
        self.m.host.send(self.guest, buffer)
        return before

    def run(self, timeout: float = 20) -> None:
        """Run the guest; the innocents must not notice, neither meanwhile nor afterwards."""
        self.run_beside(self.innocents, timeout)
        if self.innocents.fault is None:  # run()'s time-out ends all machines alike
            self.run_beside(self.innocents, timeout)

    def run_beside(self, innocents: Machine, timeout: float = 20) -> None:
        """Run the monitor with a page on its way through two innocents, and see it come back."""
        page = self.m.host.alloc(PAGE)
        page.write(b"@" * PAGE)
        self.m.host.send(innocents, page)
        self.m.run(timeout)
        passed = [got for got in self._receive() if not self._reply(got)]
        assert [got.buffers[0].read() for got in passed] == [b"B" + b"@" * (PAGE - 1)]
        self.m.host.release(passed[0].buffers[0])

    def _receive(self) -> Iterator[Received]:
        while (got := self.m.host.receive()) is not None:
            yield got

    def _reply(self, got: Received) -> bool:
        if got.sender != self.guest.number:
            return False
        self.replies.append(got)
        return True

    def logged_by(self, machine: Machine) -> list[str]:
        """The lines that a machine has logged."""
        return [line for name, line in self.lines if name == machine.name]


@contextmanager
def scene(name: str, mover: str | None = None) -> Iterator[Scene]:
    """A scene around the fault guest `name`; all of it is closed in the end."""
    lines: list[tuple[str, str]] = []
    console = lambda machine, line: lines.append((machine, line))  # noqa: E731
    with Monitor(mover=mover, pool="64M", console=console) as m:
        yield Scene(m, name, lines)

"""A machine that runs a program for Linux, as its user sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmm.engine.machine import Machine
from vmm.ferry.exchange import Exchange
from vmm.ferry.peer import Peer
from vmm.ferry.turns import Turns
from vmm.linux.guest import LinuxGuest
from vmm.linux.window import ProgramWindow


class LinuxMachine(Machine):
    """A program for Linux in its machine. What it has printed and written may be read while it
    runs, from any thread, and when it has been removed.

    files    what it has written: a mapping from absolute paths to bytes
    """

    guest: LinuxGuest

    def __init__(self, guest: LinuxGuest, peer: Peer, exchange: Exchange, turns: Turns) -> None:
        super().__init__(guest, peer, exchange, turns)
        process = guest.process
        process.memory.window = ProgramWindow(peer, exchange.ledger, turns)
        self.files: Mapping[str, bytes] = process.files.written
        self._outputs = process.outputs
        self._not_served = process.not_served

    @property
    def stdout(self) -> bytes:
        """What it has printed so far; nothing, if that went elsewhere."""
        return self._outputs[0].contents()

    @property
    def stderr(self) -> bytes:
        """What it has printed to standard error so far; nothing, if that went elsewhere."""
        return self._outputs[1].contents()

    @property
    def not_served(self) -> dict[str, int]:
        """How often it asked for each system call that is not served, by name."""
        return dict(self._not_served)

    def outcome(self) -> dict[str, Any]:
        return {**super().outcome(), "not_served": self.not_served}

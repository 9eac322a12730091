"""`in-place`: what the host shares stays where the host has it, huge pages and all.

For machines that work on the host's own arrays, one call at a time: a memslot onto the host's
mapping leaves that alone, so that whoever looks at an array meanwhile sees bytes, and the next call
finds its huge pages as they were. All else is as with `remap`, by memslots over the park.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.kvm import Vm
from vmm.memory.movers.lodgings import Lodger
from vmm.memory.movers.park import Park
from vmm.memory.movers.park_slots import ParkSlotsWindow
from vmm.memory.movers.remap import RemapMover, RemapWindow
from vmm.memory.movers.windows import Window


class InPlaceHostWindow(RemapWindow):
    """The host's window: machines see its memory where it is, so nothing has to be made ready."""

    def make_shareable(self, page: int, count: int) -> None:
        """Nothing: every window that can be shared with is an InPlaceWindow."""

    def share_slice(self, page: int, count: int, most: int) -> bool:
        return False


class InPlaceWindow(ParkSlotsWindow):
    """A machine's window, which shows what the host has where the host has it."""

    def __init__(self, host: InPlaceHostWindow, park: Park, vm: Vm, base: int, size: int) -> None:
        super().__init__(park, vm, base, size)
        self._host: Lodger = host

    def places(self, page: int, frame: int, count: int) -> Iterator[tuple[int, int]]:
        # Hidden there, it would be at home: so it is shared. What is shared is not moved.
        for part in self._park.lodgings.of(page, frame, count):
            shared = part.window is self._host
            memory = self._park.memory(part) if shared else self._park.settled(part)
            yield memory, part.pages


class InPlaceMover(RemapMover):
    """Memslots for machines; the host shares in place."""

    name = "in-place"

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        self._host: InPlaceHostWindow | None = None

    def host_window(self, size: int) -> Window:
        self._host = InPlaceHostWindow(self._park, size, viewed=True)
        return self._host

    def machine_window(self, vm: Vm, base: int, size: int, others: int = 0) -> Window:
        assert self._host is not None  # the monitor's first window
        return InPlaceWindow(self._host, self._park, vm, base, size)

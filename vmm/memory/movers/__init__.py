"""Movers: how an extent changes address space. One small interface (windows), three strategies.

`memfd`   replaces the mapping behind a window
`slots`   rewrites the KVM memslots
`remap`   does as `memfd` does, and moves large extents with their huge pages
"""

from vmm.memory.movers.mapped import MappedWindow
from vmm.memory.movers.memfd import MemfdMover
from vmm.memory.movers.mover import Mover
from vmm.memory.movers.remap import RemapMover, RemapWindow
from vmm.memory.movers.slots import SlotsMover, SlotsWindow
from vmm.memory.movers.windows import (
    PRIVATE_SLOT,
    PROGRAM_SLOTS,
    WINDOW_SLOT,
    Sight,
    Stuck,
    Window,
)

__all__ = [
    "MOVERS",
    "PRIVATE_SLOT",
    "PROGRAM_SLOTS",
    "WINDOW_SLOT",
    "MappedWindow",
    "MemfdMover",
    "Mover",
    "RemapMover",
    "RemapWindow",
    "Sight",
    "SlotsMover",
    "SlotsWindow",
    "Stuck",
    "Window",
]

MOVERS: dict[str, type[Mover]] = {
    mover.name: mover for mover in (MemfdMover, SlotsMover, RemapMover)
}

"""What a sandbox holds: its pages by state, when what can be freed has been."""

from __future__ import annotations

import gc

from vmm import Sandbox


def tidy(lib: Sandbox) -> None:
    """Free the memory of arrays that are no more, as the next `alloc` would."""
    gc.collect()
    lib._unused.release(lib.monitor.host)


def books(lib: Sandbox) -> dict[str, int]:
    """Return how many pages are in each state, having freed what can be, and checked it all."""
    tidy(lib)
    return lib.monitor.audit(mappings=True)

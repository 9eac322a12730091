"""How a class of Python's has the buffer protocol: by PEP 688, and before 3.12 by a loan."""

from __future__ import annotations

import sys
from typing import Any

from vmm.memory.views import Export

__all__ = ["ARMED", "Exporter"]

# PyBUF_ANY_CONTIGUOUS without a format: so asks NumPy's ndarray(buffer=), which lets go at once of
# what it gets, and uses it all the same.
_UNHELD = 0x98


class _Asked:
    """Is asked for each view (PEP 688)."""

    def _give_out(self, *, writable: bool) -> Export:
        """Return what is to be given out. Raises what says why there is nothing."""
        raise NotImplementedError

    def __buffer__(self, flags: int) -> memoryview:
        if flags & ~1 == _UNHELD:
            raise BufferError(
                "ndarray(buffer=) does not hold what it uses: call array(), or view()"
            )
        # Not a memoryview of it, which the garbage collector could take for part of a cycle.
        return self._give_out(writable=bool(flags & 1)).view

    def __release_buffer__(self, view: memoryview) -> None:
        """Nothing: but who sees that there is this one holds what he gets, as NumPy does."""

    def _arm(self, export: Export) -> None:
        pass

    def _disarm(self) -> None:
        """Nothing is given out before it is asked for."""


Exporter: Any = _Asked
ARMED = False
if sys.version_info < (3, 12):
    from vmm.endpoint import exporter311

    if exporter311.Exporter is not None:
        Exporter, ARMED = exporter311.Exporter, True

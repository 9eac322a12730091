"""Where arrays land that come from other workers: in memory that calls share with machines.

Dask has one function for the memory of a message, `distributed.protocol.utils.host_array`, and no
way to set another. Two modules know it by name: `comm.tcp` reads with it what a socket has, and
`protocol.utils` puts together with it what was sent in pieces (of 64 MiB). Both are given ours, for
as long as there are machines. What does not come that way stays where it is, and is copied when a
machine is to see it: what other transports bring, what was compressed or comes back from a disk.

Of a message the last thing is an array, so its end is what is aligned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from distributed.comm import tcp
from distributed.protocol import utils

from vmm.dask.library import Library
from vmm.dask.plan import SHARED
from vmm.errors import PageferryError
from vmm.sizes import pages_for

_ALIGN = 64
_MODULES: tuple[Any, ...] = (tcp, utils)
_lock = threading.Lock()
_libraries: list[Library] = []
_before: list[Callable[[int], memoryview]] = []


def begin(library: Library) -> None:
    """Let arrays land in a library's memory, rather than in that of those that came before."""
    with _lock:
        if not _libraries and all(hasattr(module, "host_array") for module in _MODULES):
            _before[:] = [module.host_array for module in _MODULES]
            for module in _MODULES:
                module.host_array = _host_array
        _libraries.append(library)


def end(library: Library) -> None:
    """Let no more land there."""
    with _lock:
        if library in _libraries:
            _libraries.remove(library)
        if not _libraries and _before:
            for module, before in zip(_MODULES, _before, strict=True):
                module.host_array = before
            _before.clear()


def _host_array(n: int) -> memoryview:
    """Return memory for a message of so many bytes."""
    libraries = tuple(_libraries)
    if n >= SHARED and libraries:
        found = _landing_place(libraries[-1], n)
        if found is not None:
            return found.data
    return np.empty((n,), dtype="u1").data


def _landing_place(library: Library, n: int) -> np.ndarray[Any, Any] | None:
    try:
        pool = library.pool
        pool._unused.release(pool.monitor.host)
        if pool._rooms._scarce(pages_for(n)):
            return None
        room = pool.empty(n + -n % _ALIGN, np.uint8)
    except PageferryError:  # there is none left, or it has just been closed
        return None
    return room[-n % _ALIGN :]

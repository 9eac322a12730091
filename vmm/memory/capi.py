"""Functions of Python's C API, as functions of our own.

`ctypes.pythonapi` has one object for each, and whoever sets its `argtypes` sets them for everybody
in the process.
"""

from __future__ import annotations

import ctypes
from typing import Any


def capi(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of the C API by its name, with types of ctypes'. It is called with the
    interpreter's lock, and raises what it has set.
    """
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))

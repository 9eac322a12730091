"""NumPy, for those who have it: loaded when it is asked for, and by nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, SupportsIndex

from vmm.endpoint.arguments import wrong_type
from vmm.errors import ConfigError
from vmm.sizes import integer


def numpy() -> Any:
    """Return NumPy. Raises ImportError."""
    try:
        return importlib.import_module("numpy")
    except ModuleNotFoundError as error:
        raise ImportError("arrays need NumPy: pip install numpy") from error


def layout(
    dtype: Any, shape: SupportsIndex | Sequence[SupportsIndex] | None, size: int
) -> tuple[Any, tuple[int, ...]]:
    """Return a NumPy type, which is of no subarray, and the lengths of an array of it; without a
    shape those of one row in `size` bytes. Raises ConfigError.
    """
    np = numpy()
    if not isinstance(dtype, str | type | list | tuple | np.dtype):
        raise wrong_type("dtype", "a type of NumPy's", dtype)
    try:
        kind = np.dtype(dtype)
    except Exception:  # it has many, and warnings that may be errors
        raise ConfigError(f"dtype {dtype!r} is no type of NumPy's") from None
    if kind.hasobject or not kind.itemsize:
        raise ConfigError(f"dtype {kind} is nothing that bytes can be")
    if shape is None:
        shape = size // kind.itemsize
    lengths = shape if isinstance(shape, list | tuple) else (shape,)
    return kind.base, (*(integer(length, "shape", 0) for length in lengths), *kind.shape)

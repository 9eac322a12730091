"""The bench's functions as another process calls them: by ctypes. It loads nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import time
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any


class Native:
    """functions.c in this process. `contrast` takes any writable buffer that has `size` bytes."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.empty = library.empty
        self.spin = library.spin
        self.spin.argtypes, self.spin.restype = (ctypes.c_uint64,), ctypes.c_uint64
        self._contrast = library.contrast
        self._contrast.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

    def contrast(self, array: Any) -> None:
        """Work on an array of NumPy's, where it is."""
        self._contrast(array.ctypes.data, array.nbytes)


native = cache(Native)


def empty(path: str) -> None:
    """Call the function that does nothing."""
    native(path).empty()


def contrast(path: str, array: Any) -> Any:
    """Work on an array that has come by a pipe; return it, by another."""
    native(path).contrast(array)
    return array


def photograph() -> bytes:
    """Return one as a PNG. It is among matplotlib's data."""
    import io
    from pathlib import Path

    import matplotlib
    from PIL import Image

    file = io.BytesIO()
    with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as image:
        image.save(file, "PNG")
    return file.getvalue()


def decode(path: str, file: bytes, count: int) -> list[float]:
    """Decode a picture so many times, by png.c; return the microseconds of each."""
    library = ctypes.CDLL(path)
    library.png_pixels.restype = ctypes.c_uint64
    data, size = ctypes.c_char_p(file), ctypes.c_size_t(len(file))
    pixels = ctypes.create_string_buffer(4 * library.png_pixels(data, size))
    room, samples = ctypes.c_size_t(len(pixels)), []
    for _ in range(count):
        start = time.perf_counter_ns()
        done = library.png_decode(data, size, pixels, room)
        samples.append((time.perf_counter_ns() - start) / 1e3)
        if not done:
            raise ValueError("libpng does not decode the picture")
    return samples


def serve(path: str, name: str, size: int, control: Connection) -> None:
    """Work on shared memory whenever there is a word, and say so; until the other side has gone."""
    import numpy as np

    memory = SharedMemory(name)
    array = np.ndarray(size, np.uint8, memory.buf)
    with contextlib.suppress(EOFError, ConnectionError):
        while control.recv_bytes():
            native(path).contrast(array)
            control.send_bytes(b"1")
    del array
    memory.close()

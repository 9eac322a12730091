"""Decode PNG files with libpng, in virtual machines: python3 png.py FILE..."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vmm import Pool

MOST_PIXELS = 64 << 20  # a file says how large its picture is, and may lie


class Decoder:
    """libpng in so many machines. Thread-safe: as many files are decoded at a time."""

    def __init__(self, machines: int = 2, seconds: float = 10) -> None:
        shim = Path(__file__).with_name("png_shim.c")
        self.lib = Pool(shim, libraries=["png", "z"], machines=machines, timeout=seconds)

    def decode(self, file: bytes) -> np.ndarray[Any, Any]:
        """Return the pixels: height, width, and four bytes of red, green, blue, alpha.

        Raises ValueError for what is no PNG, or is broken; CallError where libpng itself broke.
        """
        width, height = self.lib.png_size(file, len(file))
        if not 0 < width * height <= MOST_PIXELS:
            raise ValueError(f"no PNG, or one that is too large ({width} x {height})")
        pixels = self.lib.empty((height, width, 4), np.uint8)
        wrong = self.lib.png_decode(file, len(file), pixels, pixels.size)
        if wrong is not None:
            raise ValueError(wrong.decode(errors="replace"))
        return pixels

    def decode_all(self, files: Iterable[bytes]) -> Iterator[Any]:
        """Return the pixels of each file, in order, or the exception that `decode` raises for it.

        Files are read as machines get free, so there may be any number of them.
        """
        return self.lib.map(self.decode, files, return_exceptions=True)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lib.close()


def main(names: list[str]) -> None:
    """Decode files, some at a time; say what each is."""
    with Decoder() as decoder:
        results = decoder.decode_all(Path(name).read_bytes() for name in names)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Exception):
                print(f"{name}: {result}")
            else:
                height, width, _ = result.shape
                print(f"{name}: {width} x {height}")


if __name__ == "__main__":
    main(sys.argv[1:])

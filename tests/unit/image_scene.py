"""Where images are tried: small ones with a `main`, and what looking into them may cost."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from unit.elf_maker import ENTRY, Elf, symbol

from vmm.errors import Place
from vmm.guest.image import parse_image

MIB = 1 << 20
MAIN = symbol(1, ENTRY, 16)
NAMES = b"\0main\0"


@contextmanager
def quick(seconds: float = 5) -> Iterator[None]:
    """Check what a block takes of the processor at most: ten times what it does."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < seconds


@contextmanager
def costs(mib: int) -> Iterator[None]:
    """Check how much memory a block has at most."""
    tracemalloc.start()
    try:
        with quick(20):
            yield
        assert tracemalloc.get_traced_memory()[1] < mib * MIB
    finally:
        tracemalloc.stop()


def guest(**sections: bytes) -> Elf:
    """An image whose `main` begins at its entry, with debug sections."""
    made = Elf()
    made.symbols(MAIN, NAMES)
    for name, data in sections.items():
        made.section(f".{name}", data)
    return made


def place(made: Elf, address: int = ENTRY + 4) -> Place:
    return parse_image(made.pack(), "x.elf").symbols.place(address)

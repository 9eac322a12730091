"""Where the bytes are that pointers are to point to: shared as they lie, or copied."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.memory.capi import capi
from vmm.memory.region import Region
from vmm.sandbox.references import Reference, written_back
from vmm.sandbox.request import ALIGNED, Copied, Seen


class _PyBuffer(ctypes.Structure):
    """Py_buffer (the C API, "Buffer structure")."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_VIEW = ctypes.POINTER(_PyBuffer)
_get_buffer = capi("PyObject_GetBuffer", ctypes.c_int, ctypes.py_object, _VIEW, ctypes.c_int)
_release_buffer = capi("PyBuffer_Release", None, _VIEW)
_SIMPLE = 0  # PyBUF_SIMPLE


def address_of(view: memoryview) -> int:
    """Return the address of a contiguous view's first byte: valid as long as the view is."""
    found = _PyBuffer()
    reference = ctypes.byref(found)
    try:
        try:  # a signal's handler may raise as soon as it has been got
            _get_buffer(view, reference, _SIMPLE)
            return found.buf or 0
        finally:
            _release_buffer(reference)  # does nothing if it has not been, or twice
    finally:  # once more, should a signal's handler raise just there
        _release_buffer(reference)


class Placed(NamedTuple):
    """The arguments of a call that are pointers.

    kept         views of what they point to: to live as long as the call
    structures   those, and texts, that are to be known when it is over, and their bytes
    """

    seen: list[Seen]
    copied: list[Copied]
    kept: list[memoryview]
    structures: list[tuple[Reference, bytearray]]

    def finish(self, pointer: Callable[[int], int]) -> None:
        """Give structures back that were given as mappings, and texts: the function has returned.

        pointer    makes handles of addresses
        """
        for reference, data in self.structures:
            written_back(reference, bytes(data), pointer)

    def let_go(self) -> None:
        """Let what they point to be resized again. Nothing here is to be used any more."""
        for view in self.kept:
            view.release()


def place(references: Iterable[tuple[int, Reference]], window: Region) -> Placed:
    """Say what becomes of each, by the word that is to point to it.

    window    the host's, by host addresses: what lies in it is shared
    """
    placed = Placed([], [], [], [])
    for word, reference in references:
        if reference.mapping is not None or reference.texts:
            placed.kept.extend(map(memoryview, reference.texts.values()))
            structure = bytearray(reference.data)
            placed.structures.append((reference, structure))
            one = Copied(word, memoryview(structure), False, _align(reference))
            placed.copied.append(one._replace(pointers=reference.pointers))
            continue
        if reference.temporary:
            data = reference.data + b"\0" * reference.terminated
            one = Copied(word, memoryview(data), True, _align(reference))
            placed.copied.append(one._replace(pointers=reference.pointers))
            continue
        placed.kept.append(reference.data)
        address, size = address_of(reference.data), reference.size
        if window.base <= address and address + size <= window.end and size:
            placed.seen.append(Seen(word, address - window.base, size, reference.const))
        else:
            data = _bytes_at(address, size)
            one = Copied(word, data, reference.const, _align(reference), address)
            placed.copied.append(one)
    return placed


def _align(reference: Reference) -> int:
    return min(max(reference.type.align, ALIGNED), PAGE_SIZE)


def copied_bytes(copied: Iterable[Copied]) -> int:
    """Return how many bytes are copied, there and back."""
    copies = 0
    for one in copied:
        copies += len(one.data) * (1 if one.const else 2)
    return copies


def _bytes_at(address: int, size: int) -> memoryview:
    # By its address, since a view of structures, or of the other byte order, has no cast.
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")

"""Where the bytes are that pointers are to point to: shared as they lie, or copied."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

from vmm.memory.capi import capi
from vmm.memory.region import Region
from vmm.sandbox.references import Reference, written_back
from vmm.sandbox.request import Copied, Seen


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
    _get_buffer(view, ctypes.byref(found), _SIMPLE)
    try:
        return found.buf or 0
    finally:
        _release_buffer(ctypes.byref(found))


class Placed(NamedTuple):
    """The arguments of a call that are pointers. `kept` is to live as long as the call.

    structures   those that are to be known when it is over, and their bytes
    """

    seen: list[Seen]
    copied: list[Copied]
    kept: list[Any]
    structures: list[tuple[Reference, bytearray]]

    def finish(self) -> None:
        """Give structures back that were given as mappings: the function has returned."""
        for reference, data in self.structures:
            written_back(reference, bytes(data))


def place(references: Iterable[tuple[int, Reference]], window: Region) -> Placed:
    """Say what becomes of each, by the word that is to point to it.

    window    the host's, by host addresses: what lies in it is shared
    """
    placed = Placed([], [], [], [])
    for word, reference in references:
        if reference.mapping is not None:
            structure = bytearray(reference.object)
            placed.structures.append((reference, structure))
            placed.copied.append(Copied(word, memoryview(structure), False))
            continue
        if reference.temporary:
            data = reference.object + b"\0" * reference.terminated
            placed.copied.append(Copied(word, memoryview(data), True))
            continue
        view = memoryview(reference.object)
        placed.kept.append(view)
        address, size = address_of(view), reference.size
        if window.base <= address and address + size <= window.end and size:
            placed.seen.append(Seen(word, address - window.base, size, reference.const))
        else:
            placed.copied.append(Copied(word, _bytes_at(address, size), reference.const))
    return placed


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

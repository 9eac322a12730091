"""The buffer protocol for a class of Python's before 3.12: borrowed of `pickle.PickleBuffer`.

PickleBuffer is the one type of CPython's that hands on what another object exports, and takes
nothing of it: its `getbuffer` is `PyObject_GetBuffer(self->view.obj, ...)`, which fails where there
is no `view.obj`. So an instance of a subclass is *armed*, with that in place, or *disarmed*.

Two things are not meant for it. It may not be subclassed: the flag that says so is changed for as
long as our class statement takes. And it is filled once: `PickleBuffer.release` empties it, and
`PyObject_GetBuffer` into the same place fills it again. Both depend on how CPython 3.11 lays out
the two structures. That will not change any more, and what is here is tried before it is used.
Where that fails (`Exporter` is None), buffers have `view()` and `array()` only.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from typing import Any

from vmm.memory.capi import capi
from vmm.memory.views import Export

# Objects/picklebufobject.c: PyObject_HEAD, Py_buffer view, weakreflist
_VIEW, _SIZE = 16, 104
# Include/cpython/object.h: PyTypeObject.tp_flags
_FLAGS = 168
_BASETYPE = 1 << 10  # Py_TPFLAGS_BASETYPE
_FULL_RO = 0x11C  # PyBUF_FULL_RO

_get_buffer = capi(
    "PyObject_GetBuffer", ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int
)
_lend: Any = pickle.PickleBuffer
_release = pickle.PickleBuffer.release


def _make() -> Any:
    flags = ctypes.c_ulong.from_address(id(_lend) + _FLAGS)
    if flags.value != _lend.__flags__ or _lend.__basicsize__ != _SIZE:
        return None
    flags.value |= _BASETYPE
    try:

        class Exporter(_lend):  # type: ignore[misc]
            """Gives out what it is armed with."""

            _armed: Export | None
            raw = release = None  # PickleBuffer's own: of no use here

            def __new__(cls, *_: Any, **__: Any) -> Any:
                made = _lend.__new__(cls, b"")
                _release(made)
                made._armed = None
                return made

            def _arm(self, export: Export) -> None:
                """Give out views of this from now on. Raises ValueError if it has been released."""
                if self._armed is export:
                    return
                self._disarm()
                _get_buffer(export.view, id(self) + _VIEW, _FULL_RO)
                export.armed, self._armed = 1, export

            def _disarm(self) -> None:
                """Give out nothing more: ValueError for who asks."""
                _release(self)
                if self._armed is not None:
                    self._armed.armed, self._armed = 0, None

    finally:
        flags.value &= ~_BASETYPE
    return Exporter


def _works(kind: Any) -> bool:
    """Whether an instance gives out, and does not, what it should."""
    memory = ctypes.create_string_buffer(b"abc")
    one = Export(ctypes.addressof(memory), 3, writable=True)
    two = Export(ctypes.addressof(memory) + 1, 2, writable=False)
    made = kind()
    for export, wanted in ((one, b"abc"), (two, b"bc"), (one, b"abc")):
        made._arm(export)
        try:
            with memoryview(made) as view:
                if bytes(view) != wanted or view.readonly is export.writable or not export.alive:
                    return False
        except ValueError:
            return False
        if export.alive:
            return False
        made._disarm()
        try:
            memoryview(made)
        except ValueError:
            continue
        return False
    return True


Exporter: Any = None
if sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 11):
    Exporter = _make()
    if Exporter is not None and not _works(Exporter):
        Exporter = None

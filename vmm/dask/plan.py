"""What a call of a task's does with its arguments, and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmm.dask import shapes
from vmm.dask.library import Library
from vmm.dask.shapes import Bounds
from vmm.errors import ArgumentTypeError, ConfigError, ResourceError
from vmm.sandbox.ctype import CType, Float, Int, Pointer, Void
from vmm.sandbox.pool import Pool
from vmm.sandbox.prototype import Prototype

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
META = "computing_meta"  # as dask.array.utils.compute_meta has it
SHARED = 256 << 10  # bytes: less is copied to a machine, and back, more quickly


@dataclasses.dataclass(frozen=True)
class Use:
    """How a function is used where its declaration does not say it; see Function.using."""

    shapes: tuple[tuple[str, Bounds], ...] = ()
    new: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    timeout: float | None = None


AS_DECLARED = Use()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done with a function's arguments, and what is returned."""

    prototype: Prototype
    bounds: Mapping[str, Bounds]
    use: Use
    signature: inspect.Signature

    @classmethod
    def of(cls, library: Library, name: str, use: Use) -> Plan:
        """Return that of a function: the same, while the library is."""
        found = library.plans.get((name, use))
        if found is None:
            found = library.plans[name, use] = cls._made(library, name, use)
        return found

    @classmethod
    def _made(cls, library: Library, name: str, use: Use) -> Plan:
        prototype = library.prototype(name)
        bounds = library.bounds(name) | dict(use.shapes)
        given = {one: inner for one, inner in bounds.items() if one not in use.new}
        hidden = shapes.named(given.values(), prototype.keywords)
        declared = prototype.inspected().parameters.values()
        there = [one for one in declared if one.name not in hidden and one.name not in use.new]
        last = [one.replace(kind=_KEYWORD, default=None) for one in declared if one.name in hidden]
        last.append(inspect.Parameter(META, _KEYWORD, default=False))
        return cls(prototype, bounds, use, inspect.Signature([*there, *last]))

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, in C's order, with what arrays say of their bounds.

        What is new is None as yet.
        """
        name, keywords = self.prototype.name, self.prototype.keywords
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentTypeError(f"{name}: {error} in {name}{self.signature}") from None
        arrays = {
            one: (len(value),) if isinstance(value, bytes | bytearray) else np.shape(value)
            for one, value in given.items()
            if one in self.bounds and not isinstance(value, str | int | float | None)
        }
        found = shapes.filled(name, self.bounds, arrays) | {
            one: value for one, value in given.items() if value is not None or one in arrays
        }
        for one in keywords:
            if one not in found and one not in given and one not in self.use.new:
                raise ArgumentTypeError(f"{name}: {self._unsaid(one, given)}: give {one}=")
        return {one: found.get(one) for one in keywords}

    def _unsaid(self, bound: str, given: Mapping[str, Any]) -> str:
        """Return why an argument is not known, which arrays' shapes are to say."""
        for one, bounds in self.bounds.items():
            if bound in bounds and given.get(one) is not None:
                kind = type(given[one]).__name__
                return f"{one} is {kind!r} and no array, so nothing says what {bound} is"
        return f"nothing says what {bound} is"

    def prepare(self, values: dict[str, Any], library: Library, pool: Pool) -> None:
        """Put copies in the place of what may be written to, and make what is new."""
        for one, parameter in zip(values, self.prototype.parameters, strict=True):
            kind = parameter.type
            if not isinstance(kind, Pointer):
                continue
            if hasattr(values[one], "__array__") and not isinstance(values[one], np.generic):
                values[one] = np.asarray(values[one])  # what pandas has, say
            if one in self.use.new:
                shape = shapes.made(self.prototype.name, one, self.bounds[one], values)
                values[one] = _zeros(pool, shape, _dtype(kind.target, one))
            elif isinstance(values[one], np.ndarray):
                values[one] = self._array(values[one], kind, library, pool)
            elif not kind.const:
                values[one] = _writable(values[one], kind.target)

    def _array(
        self, array: np.ndarray[Any, Any], kind: Pointer, library: Library, pool: Pool
    ) -> np.ndarray[Any, Any]:
        if kind.const:
            # C's functions may count on alignment; what comes from a network need not have it.
            return np.require(array, requirements=["C", "A"]) if array.ndim else array
        if array.nbytes < SHARED:
            return np.array(array, order="C")
        made = _zeros(pool, array.shape, array.dtype)
        made[...] = array
        library.copied(array.nbytes)
        return made

    def settle(self, values: dict[str, Any], library: Library, pool: Pool) -> None:
        """Take what is returned out of the memory that calls share, once half of it is in use: a
        worker may keep results for long, and calls need room.
        """
        large = [one for one in self._names(values) if getattr(values[one], "nbytes", 0) >= SHARED]
        if not large:
            return
        pool._unused.release(pool.monitor.host)
        if pool._rooms._scarce(0):
            for one in large:
                values[one] = np.array(values[one])
                library.copied(values[one].nbytes)

    def returned(self, result: Any, values: Mapping[str, Any]) -> Any:
        """Return what the function does, or what it has written."""
        names = self._names(values)
        if not names:
            return None if isinstance(self.prototype.result, Void) else result
        return values[names[0]] if len(names) == 1 else tuple(values[one] for one in names)

    def _names(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the arrays that are returned; none, if it is the function's result."""
        chosen = self.use.returns or self.use.new
        if chosen or not isinstance(self.prototype.result, Void):
            return chosen
        return tuple(
            one
            for one, parameter in zip(values, self.prototype.parameters, strict=True)
            if isinstance(parameter.type, Pointer)
            and not parameter.type.const
            and isinstance(values[one], np.ndarray)
        )

    def meta(self) -> Any:
        """Return a number as the function does."""
        kind = self.prototype.result
        return None if isinstance(kind, Void) else np.zeros((), _dtype(kind, "the result"))[()]


def _zeros(pool: Pool, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an array that a call shares, if it is large enough for that to pay, and there is room;
    else any other.
    """
    if math.prod(shape) * dtype.itemsize >= SHARED:
        with contextlib.suppress(ResourceError):
            return pool.empty(shape, dtype)
    return np.zeros(shape, dtype)


def _writable(value: Any, target: CType) -> Any:
    """Return a copy of what a function may write to, if it is no array."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytearray):
        return bytearray(value)
    if isinstance(value, list | tuple) and isinstance(target, Int | Float):
        return np.array(value, _dtype(target, "a list"))
    return value


def _dtype(kind: CType, what: str) -> Any:
    if isinstance(kind, Int):
        if kind.kind == "bool":
            return np.dtype(bool)
        return np.dtype(f"{'i' if kind.signed else 'u'}{kind.size}")
    if isinstance(kind, Float) and kind.size in (4, 8):
        return np.dtype(f"f{kind.size}")
    raise ConfigError(f"{what} is of no type that NumPy has: give it")

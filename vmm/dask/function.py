"""A C function as Dask calls it: arrays in, an array or a number out, and nothing else changed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from dask.base import normalize_token

from vmm.dask import clients, here, running, shapes
from vmm.dask.library import Library
from vmm.dask.shapes import Bounds
from vmm.endpoint import arguments
from vmm.errors import ArgumentTypeError, ConfigError, ResourceError
from vmm.sandbox.ctype import CType, Float, Int, Pointer, Void
from vmm.sandbox.pool import Pool
from vmm.sandbox.prototype import Prototype

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_META = "computing_meta"  # as dask.array.utils.compute_meta has it


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which sandbox a function is of, in any process.

    path    of a file that tells of it, for processes of the host on which it was made
    """

    digest: str
    name: str
    path: str

    def library(self) -> Library:
        """Return it as it is in this process. Raises ConfigError."""
        return here.find(self.digest, self.name, self.path)


@dataclasses.dataclass(frozen=True)
class Use:
    """How a function is used where its declaration does not say it; see Function.using."""

    shapes: tuple[tuple[str, Bounds], ...] = ()
    new: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    timeout: float | None = None


class Function:
    """A C function of a sandbox, to be called by tasks of Dask's, or by anybody else.

    It is called as C does, by position or by names, with these differences:

    - **Nothing that it is given is changed.** What a pointer to non-const points to is a copy, in
      memory that is shared with the machine. Pointers to const are read where they are, if that is
      such memory; the machine cannot write there.
    - **What it returns** is what C returns. If that is nothing (void), it is the arrays that it may
      have written to, with their new values: one as it is, several as a tuple in C's order.
    - **Bounds need not be given.** If the source says `uint8_t pixels[height][width]`, then height
      and width are those of the array's shape; they are given by name only, if at all. Of
      `double values[count]` count is the number of items, whatever the shape. So

          void blur(int height, int width, uint8_t pixels[height][width], double sigma)

      is called as blur(pixels, sigma). Where the source says nothing, `using` does.

    It pickles as a few hundred bytes: the program comes to each worker once. `timeout=` is as for
    functions of Sandbox. Raises what these raise; HostError where there is no KVM.
    """

    def __init__(self, origin: Origin, name: str, use: Use = Use()) -> None:
        self.__name__ = self.__qualname__ = name
        self._origin = origin
        self._use = use

    def using(
        self,
        *,
        shapes: Mapping[str, str | Iterable[str | int]] | None = None,
        new: str | Iterable[str] = (),
        returns: str | Iterable[str] = (),
        timeout: Any = None,
    ) -> Function:
        """Return the function, used as its declaration does not say.

        shapes    what arrays' bounds are, by parameter, as C has them between brackets:
                  {"pixels": "height, width, 3"}; with one name it is the number of items
        new       arrays that each call makes, as zeros, of their declared type and shape: they are
                  not given, and they are what is returned
        returns   the arrays that are returned instead, also of a function that is not void
        timeout   of each call, in seconds

        Raises ConfigError for names that are no parameters.
        """
        library = self._origin.library()
        keywords = library.prototype(self.__name__).keywords
        bounds = dict(self._use.shapes)
        for name, given in (shapes or {}).items():
            bounds[name] = _parsed(given, f"{self.__name__}: the shape of {name}")
        use = Use(
            tuple(bounds.items()),
            _names(new) or self._use.new,
            _names(returns) or self._use.returns,
            self._use.timeout if timeout is None else arguments.seconds(timeout, "timeout"),
        )
        for name in (*bounds, *use.new, *use.returns):
            if name not in keywords:
                raise ConfigError(f"{self.__name__} has no parameter {name!r}")
        known = library.bounds(self.__name__) | bounds
        for name in use.new:
            if name not in known:
                raise ConfigError(f"{self.__name__}: nothing says how large {name} is (shapes=)")
        return Function(self._origin, self.__name__, use)

    @property
    def resources(self) -> dict[str, float]:
        """What a task of it takes of a worker: for a `resources=` of one's own."""
        return {f"pageferry-{self._origin.digest}": 1}

    # ---- As others see it ----

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        try:
            return self._origin.library().prototype(self.__name__).signature()
        except Exception:  # it is of no sandbox that is here
            return ""

    @property
    def __signature__(self) -> inspect.Signature:
        try:
            return _Plan.of(self._origin.library(), self.__name__, self._use).signature
        except ConfigError:  # on a scheduler, say
            kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
            return inspect.Signature([inspect.Parameter(f"args{kind}", kind) for kind in kinds])

    def __repr__(self) -> str:
        return f"<{self._origin.name}.{self.__name__}, sandboxed on Dask>"

    def __reduce__(self) -> tuple[Any, ...]:
        clients.note(self._origin.digest)
        return Function, (self._origin, self.__name__, self._use)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return self._origin.digest, self.__name__, self._use

    def __dask_tokenize__(self) -> Any:
        return normalize_token(("pageferry", self._origin.digest, self.__name__, repr(self._use)))

    # ---- A call ----

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        library = self._origin.library()
        plan = _Plan.of(library, self.__name__, self._use)
        meta = kwargs.pop(_META, False)
        limit = {} if self._use.timeout is None else {"timeout": self._use.timeout}
        if "timeout" in kwargs and "timeout" not in plan.prototype.keywords:
            limit = {"timeout": kwargs.pop("timeout")}
        values = plan.bound(args, kwargs)
        if meta:  # arrays without items, for the type of what is returned: no machine is asked
            return plan.returned(plan.meta(), values)
        pool = library.pool
        plan.prepare(values, library, pool)
        with running.ticket() as ticket:
            call = library.function(self.__name__)._start(list(values.values()), limit, ticket)
            result = call()
        return plan.returned(result, values)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is done with a function's arguments, and what is returned."""

    prototype: Prototype
    bounds: Mapping[str, Bounds]
    use: Use
    signature: inspect.Signature

    @classmethod
    def of(cls, library: Library, name: str, use: Use) -> _Plan:
        prototype = library.prototype(name)
        bounds = library.bounds(name) | dict(use.shapes)
        given = {one: inner for one, inner in bounds.items() if one not in use.new}
        hidden = shapes.named(given.values(), prototype.keywords)
        declared = prototype.inspected().parameters.values()
        there = [one for one in declared if one.name not in hidden and one.name not in use.new]
        last = [one.replace(kind=_KEYWORD, default=None) for one in declared if one.name in hidden]
        last.append(inspect.Parameter(_META, _KEYWORD, default=False))
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
            one: np.shape(value)
            for one, value in given.items()
            if one in self.bounds and not isinstance(value, str | bytes | int | None)
        }
        found = shapes.filled(name, self.bounds, arrays) | {
            one: value for one, value in given.items() if value is not None or one in arrays
        }
        for one in keywords:
            if one not in found and one not in given and one not in self.use.new:
                raise ArgumentTypeError(f"{name}: nothing says what {one} is: give {one}=")
        return {one: found.get(one) for one in keywords}

    def prepare(self, values: dict[str, Any], library: Library, pool: Pool) -> None:
        """Put copies in the place of what may be written to, and make what is new."""
        for one, parameter in zip(values, self.prototype.parameters, strict=True):
            kind = parameter.type
            if not isinstance(kind, Pointer):
                continue
            if one in self.use.new:
                shape = shapes.made(self.prototype.name, one, self.bounds[one], values)
                values[one] = _memory(pool.empty, np.zeros, shape, _dtype(kind.target, one))
            elif isinstance(values[one], np.ndarray):
                values[one] = self._array(values[one], kind, library, pool)
            elif not kind.const:
                values[one] = _writable(values[one], kind.target)

    def _array(
        self, array: np.ndarray[Any, Any], kind: Pointer, library: Library, pool: Pool
    ) -> np.ndarray[Any, Any]:
        if kind.const:
            return np.ascontiguousarray(array) if array.ndim else array
        made = _memory(pool.empty, np.zeros, array.shape, array.dtype)
        made[...] = array
        library.copied(array.nbytes)
        return made

    def returned(self, result: Any, values: Mapping[str, Any]) -> Any:
        names = self.use.returns or self.use.new
        if not names:
            if not isinstance(self.prototype.result, Void):
                return result
            names = tuple(
                one
                for one, parameter in zip(values, self.prototype.parameters, strict=True)
                if isinstance(parameter.type, Pointer)
                and not parameter.type.const
                and isinstance(values[one], np.ndarray)
            )
        if not names:
            return None
        return values[names[0]] if len(names) == 1 else tuple(values[one] for one in names)

    def meta(self) -> Any:
        """Return a number as the function does."""
        kind = self.prototype.result
        return None if isinstance(kind, Void) else np.zeros((), _dtype(kind, "the result"))[()]


def _memory(
    shared: Callable[..., np.ndarray[Any, Any]],
    other: Callable[..., np.ndarray[Any, Any]],
    shape: tuple[int, ...],
    dtype: Any,
) -> np.ndarray[Any, Any]:
    """Return an array of zeros in memory that calls share; elsewhere, if there is none left."""
    try:
        return shared(shape, dtype)
    except ResourceError:
        return other(shape, dtype)


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


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _parsed(given: str | Iterable[str | int], what: str) -> Bounds:
    return shapes.parse(given, what)

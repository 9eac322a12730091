"""A C function as Dask calls it: arrays in, an array or a number out, and nothing else changed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from dask.base import normalize_token

from vmm.dask import clients, here, running
from vmm.dask.library import Library
from vmm.dask.plan import AS_DECLARED, META, Plan, Use
from vmm.dask.shapes import parse
from vmm.endpoint import arguments
from vmm.errors import ConfigError
from vmm.sandbox.crew import Ticket


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

    def __init__(self, origin: Origin, name: str, use: Use = AS_DECLARED) -> None:
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
            bounds[name] = parse(given, f"{self.__name__}: the shape of {name}")
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
            return Plan.of(self._origin.library(), self.__name__, self._use).signature
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
        plan = Plan.of(library, self.__name__, self._use)
        meta = kwargs.pop(META, False)
        limit = {} if self._use.timeout is None else {"timeout": self._use.timeout}
        if "timeout" in kwargs and "timeout" not in plan.prototype.keywords:
            limit = {"timeout": kwargs.pop("timeout")}
        values = plan.bound(args, kwargs)
        if meta:  # arrays without items, for the type of what is returned: no machine is asked
            return plan.returned(plan.meta(), values)
        with running.ticket() as ticket:
            made = functools.partial(self._made, library, plan, values, limit, ticket)
            return library.room.call(made, ticket)

    def _made(
        self,
        library: Library,
        plan: Plan,
        given: dict[str, Any],
        limit: dict[str, Any],
        ticket: Ticket,
    ) -> Any:
        pool, values = library.pool, dict(given)
        plan.prepare(values, library, pool)
        result = library.function(self.__name__)._start(list(values.values()), limit, ticket)()
        plan.settle(values, library, pool)
        return plan.returned(result, values)


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)

"""What users make: a sandbox whose functions are Dask's tasks."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Iterable
from types import TracebackType
from typing import Any, SupportsIndex

from distributed import Client

from vmm.dask import clients, here
from vmm.dask.function import Function, Origin
from vmm.dask.plugins import Assigner, Machines
from vmm.dask.spec import build
from vmm.errors import ClosedError
from vmm.sandbox.names import missing
from vmm.sandbox.pool import Pool
from vmm.sizes import integer


class DaskSandbox:
    """A library of C functions that are called by tasks; see `sandbox`. Thread-safe.

    It pickles, and is then the same sandbox in another process: a Python function that uses it can
    be a task.
    """

    def __init__(self, origin: Origin, functions: Iterable[str]) -> None:
        self._origin = origin
        self._functions = tuple(functions)

    def __getitem__(self, name: str) -> Function:
        """Return a function by its name in C. Raises NoSuchName: AttributeError, and KeyError."""
        if name not in self._functions:
            raise missing(name, "function", self._origin.name, list(self._functions)) from None
        return Function(self._origin, name)

    def __getattr__(self, name: str) -> Function:
        if name.startswith("__") or "_functions" not in self.__dict__:
            raise AttributeError(name)
        return self[name]

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *self._functions}

    @property
    def pool(self) -> Pool:
        """The machines of this process, in a task those of its worker: for all that Pool can do."""
        return self._origin.library().pool

    @property
    def resources(self) -> dict[str, float]:
        """What a task takes that uses a machine: for tasks that are Python functions,
        `dask.annotate(executor="pageferry", resources=lib.resources)`.
        """
        return {f"pageferry-{self._origin.digest}": 1}

    def install(self, client: Client | None = None) -> Awaitable[Any] | None:
        """Have the workers of a cluster know it, those that come later as well. That is done when
        it is made, if there is a client then. To be awaited, if the client is asynchronous.
        """
        return clients.install(self._origin.digest, _client(client))

    def uninstall(self, client: Client | None = None) -> Awaitable[Any] | None:
        """Have the workers of a cluster give back its machines, which ends calls that are under way
        there. Without it they keep them as long as they live.
        """
        (plugin,) = self.resources
        return clients.uninstall(self._origin.digest, plugin, _client(client))

    def close(self) -> None:
        """Close its machines in this process, once for each `sandbox` of it; not those of workers.
        What is left is closed when the process ends.
        """
        if not self.__dict__.get("_made"):
            return
        self._made = False
        clients.disown(self._origin.digest)
        here.release(self._origin.digest)

    _made = False

    def __enter__(self) -> DaskSandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        clients.note(self._origin.digest)
        return DaskSandbox, (self._origin, self._functions)

    def __repr__(self) -> str:
        return f"<sandbox {self._origin.name} on Dask>"


def _client(given: Client | None) -> Client:
    chosen = clients.present() if given is None else given
    if chosen is None:
        raise ClosedError("there is no client: make one, or give it")
    return chosen


def sandbox(
    *sources: str | bytes | os.PathLike[str],
    machines: SupportsIndex | None = None,
    needs: Iterable[str] | None = None,
    **options: Any,
) -> DaskSandbox:
    """Return a library of C functions that run in virtual machines of Dask's workers.

        lib = sandbox("blur.c")
        result = images.map_blocks(lib.blur, 1.5, dtype=images.dtype)

    It is compiled here, once, and shipped once to each worker; what is called is a Function, which
    says what a call means. Without a cluster its machines are this process's.

    sources, options   as for Pool: what is compiled, `memory`, `files`, `fresh`, `timeout` and so
                       on. Paths in `files` and `root` are those of the worker's host
    machines   on each worker: how many calls can be under way there at a time; by default as many
               as it has threads
    needs      what the program asks of a processor, as /proc/cpuinfo calls it (["avx2"]); by
               default what its compiler says. Workers without are not given its tasks

    Make the client first: then all workers know it when this returns. Raises GuestImageError for
    what cannot be built, ConfigError.
    """
    count = None if machines is None else integer(machines, "machines", 1, 1024)
    spec, program = build(sources, needs, options)
    program.close()
    library = here.hold(spec, machines=count, told=program.prototypes)
    try:
        made = DaskSandbox(Origin(spec.digest, spec.name, library.written()), spec.functions)
        made._made = True
        clients.own(spec.digest, (Assigner(), Machines(spec, count)))
        client = clients.present()
        if client is not None and not client.asynchronous:
            clients.install(spec.digest, client)
    except BaseException:
        clients.disown(spec.digest)
        here.release(spec.digest)
        raise
    return made

"""A sandbox in one process: its machines, which are opened when they are first asked for."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import Any

import cloudpickle

from vmm.dask.room import Room
from vmm.dask.shapes import Bounds
from vmm.dask.spec import Spec
from vmm.errors import ClosedError
from vmm.kvm import forks
from vmm.sandbox.function import Function
from vmm.sandbox.pool import Pool
from vmm.sandbox.prototype import Prototype
from vmm.sandbox.prototypes import Prototypes


class Library:
    """The machines of one sandbox in this process, for whoever calls its functions here.

    machines     how many there are to be; None for one per processor
    told         the functions' prototypes, where they are known without a machine
    directory    where the program is to be put, so that machines can be made of it

    Thread-safe.
    """

    def __init__(
        self,
        spec: Spec,
        machines: int | None = None,
        told: Prototypes | None = None,
        directory: str | None = None,
    ) -> None:
        self.spec = spec
        self.machines = machines
        self.plans: dict[Any, Any] = {}  # of calls; see vmm.dask.plan
        self.room = Room()
        self._told = told
        self._parent = directory
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.RLock()
        self._pool: Pool | None = None
        self._closed = False
        forks.hold(self)

    def let_go(self) -> None:
        """Begin anew in a child: another thread may have had the lock."""
        self._lock = threading.RLock()

    def count_on(self, machines: int | None) -> None:
        """Have so many machines, unless there are any already."""
        with self._lock:
            if self._pool is None:
                self.machines = machines

    @property
    def pool(self) -> Pool:
        """The machines. Raises HostError where none can be run, and what else Pool does."""
        pool = self._pool
        if pool is not None and not pool._closed:
            return pool
        with self._lock:
            if self._closed:
                raise ClosedError(f"the sandbox {self.spec.name} has been closed")
            if self._pool is None or self._pool._closed:  # by who has forked this process, say
                self._pool = self._open()
            return self._pool

    def _open(self) -> Pool:
        self.spec.check_processor()
        options = dict(self.spec.options)
        pool = Pool(self._program(), machines=self.machines, **options)
        try:
            pool._program.prototypes.learn(self.spec.told)
            for name, lengths in self.spec.lengths.items():
                if lengths:
                    pool[name].lengths = lengths
        except BaseException:
            pool.close()
            raise
        return pool

    def function(self, name: str) -> Function:
        """Return a function as the machines have it. Raises NoSuchName."""
        return self.pool[name]

    def prototype(self, name: str) -> Prototype:
        """Return a function's prototype; of the machines' only if it is not known without."""
        return self.function(name)._typed if self._told is None else self._told[name]

    def bounds(self, name: str) -> dict[str, Bounds]:
        """Return what the sources say that the bounds of a function's arrays are."""
        return dict(self.spec.bounds.get(name, {}))

    def copied(self, count: int) -> None:
        """Count bytes that were copied into memory that calls share."""
        self.pool._caller._count(0, count, 0, 0)

    def tidy(self) -> None:
        """Give back the memory of arrays that are gone, as the next call would."""
        pool = self._pool
        if pool is not None and not pool._closed:
            with contextlib.suppress(ClosedError):
                pool._unused.release(pool.monitor.host)

    # ---- Files ----

    def _place(self) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(
                prefix="pageferry-dask-", dir=self._parent
            )
        return Path(self._directory.name)

    def _program(self) -> Path:
        path = self._place() / f"{self.spec.name}.elf"
        if not path.exists():
            path.write_bytes(self.spec.elf)
        return path

    def written(self) -> str:
        """Write what travels into a file, for other processes of this host; return its path."""
        with self._lock:
            path = self._place() / self.spec.digest
            path.write_bytes(cloudpickle.dumps(self.spec))
        return str(path)

    def close(self) -> None:
        """Close the machines, which ends their calls, and remove the files."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            directory, self._directory = self._directory, None
        try:
            if pool is not None:
                pool.close()
        finally:
            if directory is not None:
                directory.cleanup()


def read(path: str) -> Any:
    """Return what `written` has written; None if it is not there."""
    try:
        return cloudpickle.loads(Path(path).read_bytes())
    except OSError:
        return None

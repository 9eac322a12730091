"""What Dask's workers and its scheduler do for sandboxes, as plug-ins of theirs.

A worker that can run a sandbox's machines offers them as a resource, and has an executor for the
tasks that use them. The scheduler sees which tasks do, and sends them there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from dask._task_spec import GraphNode, Task
from distributed import Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from distributed.threadpoolexecutor import ThreadPoolExecutor
from tornado.ioloop import PeriodicCallback

from vmm import host
from vmm.dask import here, landing, running
from vmm.dask.function import Function
from vmm.dask.library import Library
from vmm.dask.spec import Spec
from vmm.errors import HostError, PageferryError

EXECUTOR = "pageferry"
_TOPIC = "pageferry"
_DEEP = 6  # how far functions are looked for in what a task is made of
_MANY = 64  # items of a list, or arguments
_TIDY = 100  # milliseconds: as often as Dask looks how much memory a worker has in use
_log = logging.getLogger("distributed.pageferry")  # where a worker's own lines go


def _provide_executor(worker: Worker) -> None:
    """Have a worker run what uses machines in threads of their own. The worker ends them."""
    if EXECUTOR not in worker.executors:
        threads = ThreadPoolExecutor(  # type: ignore[no-untyped-call]
            worker.state.nthreads, thread_name_prefix="pageferry-task"
        )
        worker.executors[EXECUTOR] = threads


class Machines(WorkerPlugin):
    """A sandbox's machines, on one worker.

    machines   how many; None for one per thread of the worker
    """

    idempotent = True

    def __init__(self, spec: Spec, machines: int | None) -> None:
        self.name = spec.resource
        self._spec = spec
        self._machines = machines
        self._worker: Worker | None = None
        self._held = False
        self._library: Library | None = None  # while arrays may land there

    async def setup(self, worker: Worker) -> None:
        self._worker = worker
        _provide_executor(worker)
        spec, count = self._spec, self._machines or worker.state.nthreads
        library = here.hold(spec, machines=count, directory=worker.local_directory)
        self._held = True
        try:
            await asyncio.to_thread(lambda: library.pool)
        except (PageferryError, OSError) as error:
            _log.warning("the sandbox %s cannot be run here: %s", spec.name, error)
            self._tell(f"{type(error).__name__}: {error}")
            return
        landing.begin(library)
        self._library = library
        # A worker that has spilled results, or forgotten them, counts that memory. If it waits for
        # less of it, it makes no calls that would give it back.
        tidy = worker.periodic_callbacks[self.name] = PeriodicCallback(library.tidy, _TIDY)
        tidy.start()
        await worker.set_resources(**{spec.resource: count})
        _log.info("the sandbox %s has %d machines here", spec.name, count)
        self._tell(None)

    def _tell(self, reason: str | None) -> None:
        """Let the scheduler know whether its tasks can be run here; None, if they can."""
        worker = self._worker
        assert worker is not None
        worker.log_event(
            _TOPIC,
            {"resource": self.name, "worker": worker.address, "reason": reason},
        )

    async def teardown(self, worker: Worker) -> None:
        if self._library is not None:
            worker.periodic_callbacks.pop(self.name).stop()
            landing.end(self._library)
            self._library = None
        if self._held:
            self._held = False
            await asyncio.to_thread(here.release, self._spec.digest)

    def transition(self, key: Any, start: str, finish: str, **more: Any) -> None:
        if start in ("executing", "long-running") and finish in ("released", "cancelled"):
            running.cancel(self._worker, key)


class Assigner(SchedulerPlugin):
    """Has the scheduler send tasks that use a sandbox to workers that can run it."""

    name = "pageferry"
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Scheduler | None = None
        self._refusals: dict[str, dict[str, str]] = {}  # reasons, by resource and worker

    def __reduce__(self) -> tuple[Any, ...]:
        return Assigner, ()

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def update_graph(self, scheduler: Scheduler, *, tasks: Any = (), **more: Any) -> None:
        for key in tasks:
            ts = scheduler.tasks.get(key)
            if ts is None or ts.state not in ("released", "waiting"):
                continue
            wanted = {
                name
                for function in functions_of(ts.run_spec)
                for name in function.resources
                if not self._refused(scheduler, name)
            }
            if wanted:
                ts.resource_restrictions = dict.fromkeys(wanted, 1) | (
                    ts.resource_restrictions or {}
                )
                ts.annotations = {"executor": EXECUTOR} | (ts.annotations or {})

    def _refused(self, scheduler: Scheduler, resource: str) -> bool:
        """Whether no worker can: then any one is to say why."""
        refusals = self._refusals.get(resource, {})
        return bool(refusals) and refusals.keys() >= scheduler.workers.keys()

    def log_event(self, topic: str, msg: Any) -> None:
        scheduler = self._scheduler
        if topic != _TOPIC or scheduler is None or not isinstance(msg, dict):
            return
        resource, worker, reason = msg["resource"], msg["worker"], msg["reason"]
        if reason is not None:
            self._refusals.setdefault(resource, {})[worker] = reason
            if self._refused(scheduler, resource):
                self._let_go(scheduler, resource)
            return
        self._refusals.get(resource, {}).pop(worker, None)
        # It had not offered this when it came, which is when the scheduler looks who can run what.
        ws = scheduler.workers.get(worker)
        if ws is not None:
            ready = scheduler.bulk_schedule_unrunnable_after_adding_worker(ws)
            scheduler.transitions(ready, stimulus_id=f"pageferry-offered-{resource}")

    def _let_go(self, scheduler: Scheduler, resource: str) -> None:
        """Have tasks run that no worker can: each raises what is wrong."""
        ready: dict[Any, Any] = {}
        for ts in scheduler.unrunnable:
            if resource in (ts.resource_restrictions or {}):
                ts.resource_restrictions = {}
                ts.annotations = {
                    name: value
                    for name, value in (ts.annotations or {}).items()
                    if value != EXECUTOR
                }
                ready[ts.key] = "waiting"
        scheduler.transitions(ready, stimulus_id=f"pageferry-refused-{resource}")

    def remove_worker(self, scheduler: Scheduler, worker: str, **more: Any) -> None:
        for refusals in self._refusals.values():
            refusals.pop(worker, None)


def functions_of(node: Any, deep: int = _DEEP) -> Iterator[Function]:
    """Yield the sandboxed functions that a task calls, as far as its graph shows them: not those
    that are called by Python functions.
    """
    if isinstance(node, Function):
        yield node
    elif deep:
        for part in _parts(node):
            yield from functions_of(part, deep - 1)


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, Task):
        yield node.func
        yield from node.args[:_MANY]
        yield from list(node.kwargs.values())[:_MANY]
    elif isinstance(node, GraphNode):
        yield from getattr(node, "args", ())[:_MANY]
    elif isinstance(node, partial):
        yield from (node.func, *node.args, *node.keywords.values())
    elif isinstance(node, dict):
        yield from list(node.values())[:_MANY]
    elif isinstance(node, list | tuple):
        yield from node[:_MANY]


def dask_setup(server: Any) -> None:
    """Get a worker or a scheduler ready: what `--preload vmm.dask` calls."""
    if isinstance(server, Scheduler):
        plugin = Assigner()
        server.add_plugin(plugin, name=plugin.name, idempotent=True)
        plugin._scheduler = server
        return
    if not isinstance(server, Worker):  # a nanny
        return
    _provide_executor(server)
    try:
        found = host.inspect()
    except HostError as error:
        _log.warning("no machines can be run here: %s", error)
    else:
        _log.info("machines can be run here: %s", found.backend.value)

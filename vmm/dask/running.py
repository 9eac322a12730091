"""Calls that are under way in tasks, and how Dask says that nobody wants them any more."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterator
from typing import Any

from distributed import Reschedule, Status, get_worker

from vmm.errors import CallCancelled, ClosedError
from vmm.sandbox.crew import Ticket

_tickets: dict[tuple[str, Hashable], set[Ticket]] = {}
_lock: Any = threading.Lock()
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # another thread may have had it


@contextlib.contextmanager
def ticket() -> Iterator[Ticket]:
    """Give a call's ticket: `cancel` reaches it, if it is a task's.

    A call that has been cancelled is no failure of the task: Dask may have changed its mind. Nor is
    one that a worker ends which is about to close.
    """
    made, place = Ticket(), None
    with contextlib.suppress(ValueError, KeyError):  # there is no task
        worker = get_worker()
        place = worker.id, worker.get_current_task()
    if place is None:
        yield made
        return
    with _lock:
        _tickets.setdefault(place, set()).add(made)
    # Dask may have said so before, to nobody: a task's state is first, and then it tells.
    task = worker.state.tasks.get(place[1])
    if task is not None and task.state in ("cancelled", "resumed"):
        made.cancel()
    try:
        yield made
    except CallCancelled:
        if not made.cancelled:
            raise
        raise Reschedule from None
    except ClosedError:
        if worker.status is Status.running:
            raise
        raise Reschedule from None
    finally:
        with _lock:
            left = _tickets[place]
            left.discard(made)
            if not left:
                del _tickets[place]


def cancel(worker: Any, key: Hashable) -> None:
    """Stop the calls of a task."""
    with _lock:
        found = tuple(_tickets.get((worker.id, key), ()))
    for made in found:
        made.cancel()

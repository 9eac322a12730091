"""The sandboxes of this process, by their digests: a task finds them here."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any

from distributed import get_worker

from vmm.dask.library import Library, read
from vmm.dask.spec import Spec
from vmm.errors import ConfigError

PATIENCE = 30.0  # seconds that a worker waits for a sandbox that is on its way

_libraries: dict[str, Library] = {}
_holders: dict[str, int] = {}
_changed = threading.Condition(threading.RLock())


def hold(spec: Spec, **options: Any) -> Library:
    """Return this process's library of a sandbox, which there is one of, until as many `release`.

    options   as Library has them, if it is to be made
    """
    with _changed:
        found = _libraries.get(spec.digest)
        if found is None:
            found = _libraries[spec.digest] = Library(spec, **options)
        elif not _holders.get(spec.digest):  # a task has found it before it was said how many
            found.count_on(options.get("machines"))
        _holders[spec.digest] = _holders.get(spec.digest, 0) + 1
        _changed.notify_all()
        return found


def release(digest: str) -> None:
    """Let go of a library; the last one closes it."""
    with _changed:
        _holders[digest] = _holders.get(digest, 0) - 1
        if _holders[digest] > 0:
            return
        del _holders[digest]
        library = _libraries.pop(digest, None)
    if library is not None:
        library.close()


def find(digest: str, name: str, path: str) -> Library:
    """Return the library of a sandbox: one of this process's, or that a file of this host's tells
    of, or, on a worker, one that comes in time. Raises ConfigError.

    Who finds it does not hold it: it is closed by the last who does, or when the process ends.
    """
    found = _libraries.get(digest)
    if found is not None:
        return found
    spec = read(path)
    if spec is not None and spec.digest == digest:
        with _changed:
            return _libraries.setdefault(digest, Library(spec))
    if _on_worker():
        until = time.monotonic() + PATIENCE
        with _changed:
            _changed.wait_for(lambda: digest in _libraries, until - time.monotonic())
            if digest in _libraries:
                return _libraries[digest]
    raise ConfigError(
        f"the sandbox {name} is not here: it has been closed, or it was made before the Client "
        "(then call its install())"
    )


def _on_worker() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _in_child() -> None:
    """Begin anew in a child: another thread may have had the lock."""
    global _changed
    _changed = threading.Condition(threading.RLock())


os.register_at_fork(after_in_child=_in_child)


@atexit.register
def _close_all() -> None:
    with _changed:
        libraries = list(_libraries.values())
        _libraries.clear()
        _holders.clear()
    for library in libraries:
        library.close()

"""How a sandbox comes to a cluster: through the client that is there, once."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Iterator
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from vmm.errors import ClosedError

Plugins = tuple[SchedulerPlugin, WorkerPlugin]

_own: dict[str, Plugins] = {}  # of the sandboxes that this process has made, by digest
_told: dict[str, weakref.WeakSet[Client]] = {}


def own(digest: str, plugins: Plugins) -> None:
    """Know what a sandbox that was made here is to be installed with."""
    _own[digest] = plugins
    _told.setdefault(digest, weakref.WeakSet())


def disown(digest: str) -> None:
    """Forget that."""
    _own.pop(digest, None)
    _told.pop(digest, None)


def present() -> Client | None:
    """Return the client that is used if nobody says which."""
    with contextlib.suppress(ValueError):
        return Client.current()  # type: ignore[no-untyped-call,no-any-return]
    return None


def install(digest: str, client: Client) -> Awaitable[Any] | None:
    """Have a cluster know a sandbox: when this returns, its workers do. Of an asynchronous client
    it returns what is to be awaited.
    """
    _told[digest].add(client)
    first, second = _own[digest]
    if client.asynchronous:
        return _install(client, first, second)
    with _reached(client):
        client.register_plugin(first)
        client.register_plugin(second)
    return None


def uninstall(digest: str, plugin: str, client: Client) -> Awaitable[Any] | None:
    """Have the workers of a cluster let go of a sandbox; as `install`."""
    if digest in _told:
        _told[digest].discard(client)
    with _reached(client):
        done: Awaitable[Any] = client.unregister_worker_plugin(plugin)  # type: ignore[no-untyped-call]
    return done if client.asynchronous else None


@contextlib.contextmanager
def _reached(client: Client) -> Iterator[None]:
    """Say so if a client has lost its scheduler, or was closed. Raises ClosedError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # Dask's, by where it notices
        if client.status == "running":
            raise
        raise ClosedError("the client has no scheduler any more: make another one") from error


async def _install(client: Client, *plugins: Any) -> None:
    for plugin in plugins:
        await client.register_plugin(plugin)


def note(digest: str) -> None:
    """A function is about to be sent. Have the present client's cluster know its sandbox, if it
    does not: without waiting, since the client may hold locks. Tasks wait for it.
    """
    if digest not in _own:
        return
    client = present()
    if client is None or client in _told[digest] or client.status != "running":
        return
    _told[digest].add(client)
    loop: Any = client.loop
    coroutine = _install(client, *_own[digest])
    loop.asyncio_loop.call_soon_threadsafe(asyncio.ensure_future, coroutine)

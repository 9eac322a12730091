"""A thread that ticks while there is something to time, and sleeps for the rest of its life.

Made at the first need of it and kept: to start and join a thread for each short run costs more than
such a run.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from vmm.engine.kick import no_thread


class Clock:
    """Calls `tick` again and again, on a thread of its own.

    tick    returns in how many seconds to call it again; None if not before the next `begin`

    `begin` and `close` are for one thread at a time, which does not hold what `tick` locks.
    """

    def __init__(self, tick: Callable[[], float | None]) -> None:
        self._tick = tick
        # The interpreter's own: what a signal's handler raises in an Event's `set` would leave that
        # locked for ever.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self) -> None:
        """Tick now, whatever was agreed. Raises ResourceError if no thread can be started."""
        if not self.alive:
            # A daemon: a monitor that nobody closes does not keep the process from its end.
            self._thread = threading.Thread(
                target=self._run, name="pageferry-clock", daemon=True
            )  # known before it runs: what a signal's handler raises must not make it two
            try:
                self._thread.start()
            except RuntimeError as error:
                raise no_thread("the clock", error) from None
        self._wake.put(None)

    @property
    def alive(self) -> bool:
        """Whether there is a thread that ticks, or will when it is to."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        pause: float | None = None
        while True:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=pause)
            if self._closed or self._thread is not threading.current_thread():
                self._wake.put(None)  # it was for another, perhaps
                return
            pause = self._tick()

    def close(self) -> None:
        """End the thread. Further calls do nothing."""
        self._closed = True
        self._wake.put(None)
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        self._thread = None

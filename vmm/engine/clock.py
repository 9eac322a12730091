"""A thread that ticks while there is something to time, and sleeps for the rest of its life.

Made at the first need of it and kept: to start and join a thread for each short run costs more than
such a run.
"""

from __future__ import annotations

import _thread
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable

from vmm.engine.kick import no_thread

_MOMENT = 0.0005  # seconds, for a thread to come to its end


class Clock:
    """Calls `tick`, a method, again and again, on a thread of its own.

    tick    returns in how many seconds to call it again; None if not before the next `begin`. The
            clock does not keep its object alive, and ends with it

    `begin` and `close` are for one thread at a time, which does not hold what `tick` locks.
    """

    def __init__(self, tick: Callable[[], float | None]) -> None:
        self._tick = weakref.WeakMethod(tick)
        self._life: _Life | None = None

    def begin(self) -> None:
        """Tick now, whatever was agreed. Raises ResourceError if no thread can be started."""
        life = self._life
        if life is None or not life.running:
            if life is not None:
                life.end()  # should it begin after all
            # Known before it runs: what a signal's handler raises must not make it two.
            self._life = life = _Life(self._tick)
            try:
                # In one step of the interpreter's. A Thread's `start` waits for the thread to say
                # that it runs, with locks that stay locked if a signal's handler raises there.
                _thread.start_new_thread(life.run, ())
            except RuntimeError as error:
                raise no_thread("the clock", error) from None
        life.wake.put(None)

    @property
    def alive(self) -> bool:
        """Whether there is a thread that ticks, or will when it is to."""
        return self._life is not None and self._life.running

    def close(self) -> None:
        """End the thread. Further calls do nothing."""
        life = self._life
        if life is not None:
            life.end()
            # In the thread itself it is Python's collector that calls this: of what nobody closed.
            while life.running and life.thread != threading.get_ident():
                time.sleep(_MOMENT)

    def __del__(self) -> None:
        if self._life is not None:
            self._life.end()


class _Life:
    """A thread of a clock, from its beginning to its end; it knows of nobody else.

    The interpreter's own queue wakes it: what a signal's handler raises in the `set` of an Event
    would leave that locked for ever.
    """

    __slots__ = ("_over", "_tick", "running", "thread", "wake")

    def __init__(self, tick: weakref.WeakMethod[Callable[[], float | None]]) -> None:
        self._tick = tick
        self._over = False
        self.running = False
        self.thread = 0
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def end(self) -> None:
        self._over = True
        self.wake.put(None)

    def run(self) -> None:
        self.thread = threading.get_ident()
        self.running = True
        try:
            pause: float | None = None
            while True:
                with contextlib.suppress(queue.Empty):
                    self.wake.get(timeout=pause)
                tick = None if self._over else self._tick()
                if tick is None:
                    return
                pause = tick()
                del tick  # or its object would live on in here
        finally:
            self.running = False

"""Every order in which a monitor, its buffers and their views may end: none may end the process.

Run in a process of its own, which forks one for each order that is the end of an interpreter.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kvm.puppets import Stage

from vmm import ClosedError, Monitor
from vmm.guest.abi import PAGE_SIZE, Flags, Operation, Status
from vmm.memory import views as kept_views
from vmm.memory.movers import RemapMover

SIZE = 16 * PAGE_SIZE


def mapped() -> tuple[int, int]:
    """Return how many mappings there are of pools, and how much address space is in use."""
    pools = Path("/proc/self/maps").read_text().count("pageferry-pool")
    return pools, int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE


def quiet(*_: object) -> None:
    """Print nothing."""


class Scene:
    """A monitor; a buffer of the host's, and two that a machine has lent and shared; views."""

    def __init__(self, mover: str, *, borrowed: bool = False) -> None:
        self.monitor: Any = Monitor(mover=mover, pool="8M", console=quiet)
        host = self.monitor.host
        own = host.alloc(SIZE)
        own.write(b"own" * 10)
        self.buffers: Any = [own, host.alloc(PAGE_SIZE)]
        self.spans: list[Any] = []
        if borrowed:
            self.stage = Stage(self.monitor, "a", window="2M")
            (puppet,) = self.stage.puppets
            for operation, flags in ((Operation.LEND, 0), (Operation.SHARE, Flags.READONLY)):
                (span,) = puppet.alloc(2)
                puppet.write(span.gpa, 0x6F6F, 2)
                length = 2 * PAGE_SIZE
                assert puppet.do(operation, 0, span, length=length, flags=flags) is Status.OK
                self.buffers += host.receive().buffers
                self.spans.append(span)
        first = own.view()
        self.views: Any = [
            *(first, first[3:], np.asarray(own)[::7], own.array("u2", 4).reshape(2, 2)),
            *(memoryview(buffer) for buffer in self.buffers[1:]),
            *(buffer.array() for buffer in self.buffers[1:]),
        ]

    def use(self) -> None:
        """Read whatever there is; write what may be written."""
        for view in self.views or ():
            bytes(view)
        if self.views:
            assert bytes(self.views[0][:3]) == b"own"
            self.views[0][40] = 1

    def reclaim(self) -> None:
        """Let the machine take back what it has lent and shared."""
        if self.monitor is not None and self.monitor.host is not None:
            try:
                for span in self.spans:
                    self.stage.puppets[0].reclaim(span)
            except ClosedError:
                pass

    def kill(self) -> None:
        """End the machine."""
        if self.monitor is not None:
            try:
                self.monitor.kill(self.stage.puppets[0].machine)
                self.monitor.remove(self.stage.puppets[0].machine)
            except ClosedError:
                pass

    def close(self) -> None:
        """Close the monitor."""
        if self.monitor is not None:
            self.monitor.close()

    def drop(self, name: str) -> None:
        """Forget something."""
        setattr(self, name, None)

    def forget(self) -> None:
        """Forget the monitor, which has to be closed for that."""
        self.close()
        self.stage = self.monitor = None  # type: ignore[assignment]


def orders(mover: str) -> int:
    """Do everything in every order; nothing is left of it at last. Return how many there were."""
    done = 0
    steps: tuple[Callable[[Scene], object], ...] = (
        Scene.close,
        lambda scene: scene.drop("views"),
        lambda scene: scene.drop("buffers"),
        lambda _: gc.collect(),
        Scene.forget,
    )
    _, before = mapped()
    for order in itertools.permutations(steps):
        scene = Scene(mover)
        for step in order:
            step(scene)
            scene.use()
        del scene
        done += 1
    for order in itertools.permutations((Scene.reclaim, Scene.kill, Scene.close, steps[1])):
        scene = Scene(mover, borrowed=True)
        for step in order:
            step(scene)
            scene.use()
        scene.close()
        scene.use()
        del scene
        done += 1
    gc.collect()
    Monitor(pool="8M").close()
    assert not kept_views._kept, kept_views._kept
    pools, after = mapped()
    assert (pools, after < before + (500 << 20)) == (0, True)  # a window has 8 MiB, or more
    return done


# ---- The end of an interpreter ----


def _left_open(scene: Scene) -> None:
    sys.modules["left"] = scene  # type: ignore[assignment]


def _closed(scene: Scene) -> None:
    scene.close()
    sys.modules["left"] = scene  # type: ignore[assignment]


def _last_words(scene: Scene) -> None:
    class Holder:
        def __init__(self) -> None:
            self.me, self.scene, self.views = self, scene, scene.views

        def __del__(self) -> None:
            for view in self.views:
                bytes(view)

    sys.modules["left"] = Holder()  # type: ignore[assignment]
    Holder()


def _used_meanwhile(scene: Scene) -> None:
    def use() -> None:
        while True:
            scene.use()

    threading.Thread(target=use, daemon=True).start()
    time.sleep(0.02)
    scene.close()


def _used_with_care(scene: Scene) -> None:
    _left_open(scene)
    raise KeyError("as it ends")


def _with_children(scene: Scene) -> None:
    """A child finds zeros where the views are, and changes nothing of its parent's."""
    before = [bytes(view) for view in scene.views]
    for close in (False, True):
        if close:
            scene.close()
        child = os.fork()
        if not child:
            status = 1
            try:
                assert not any(any(bytes(view)) for view in scene.views)
                scene.views[0][:] = b"x" * SIZE
                gc.collect()
                assert bytes(scene.views[0]) == b"x" * SIZE
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert [bytes(view) for view in scene.views] == before


def _reclaimed(scene: Scene) -> None:
    scene.reclaim()
    scene.use()
    _left_open(scene)


ENDS = (
    *(_left_open, _closed, _last_words, _used_meanwhile, _used_with_care, _with_children),
    _reclaimed,
)


def ends(mover: str) -> dict[str, int]:
    """End an interpreter in each way; return how it ended: 0, or 1 for what was raised."""
    found = {}
    for end in ENDS:
        child = os.fork()
        if not child:
            # Not `os._exit`: all that is done at the end of an interpreter is to be done.
            sys.unraisablehook = lambda what: os.write(2, f"{what}\n".encode())
            end(Scene(mover, borrowed=True))
            sys.exit(0)
        found[end.__name__.strip("_")] = os.waitpid(child, 0)[1]
    return found


def main(mover: str) -> None:
    """Do all of it."""
    faulthandler.enable()
    RemapMover.large = 2
    found = ends(mover)
    print(found, orders(mover), flush=True)

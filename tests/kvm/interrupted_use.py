"""A handler that comes at each line of a call, and uses the monitor. It may crash the process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from kvm.every_use import Scene

import vmm
from vmm import PageferryError
from vmm.guest.abi import PAGE_SIZE

PACKAGE = str(Path(vmm.__file__).parent)


def at_line(number: int, call: Callable[[], object], handler: Callable[[], None]) -> bool:
    """Call something, and a handler at a line of it; return whether there is such a line."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                handler()
        return trace

    sys.settrace(trace)
    try:
        call()
    except (PageferryError, IndexError):
        pass  # what it was about has gone, or there is nothing there
    finally:
        sys.settrace(None)
    return left <= 0


def _start_again(scene: Scene) -> None:
    """Let another machine be the one that messages are for, and have its pages back."""
    scene.monitor.remove(scene.a)
    scene.a = scene.spawn("a")
    while received := scene.monitor.host.receive():
        for buffer in received.buffers:
            with contextlib.suppress(PageferryError):
                scene.monitor.host.release(buffer)


def main(mover: str, first: int, step: int) -> None:
    """Let the handler come at every so many lines of calls. Print at how many, and how often it was
    told to come later.
    """
    scene = Scene(mover=mover, audit=False)
    monitor, host = scene.monitor, scene.monitor.host
    lines = later = 0

    def handler() -> None:
        """Read, write and move what the call is about."""
        nonlocal later
        uses: list[Callable[[], object]] = [
            buffer.read,
            lambda: buffer.write(b"handler"),
            buffer.frame_number,
            lambda: monitor.notice(scene.a, 1),
            lambda: monitor.interrupt(scene.a),
            lambda: scene.a.frame_number(scene.a.window.base),
            lambda: host.share(scene.a, buffer),
            lambda: host.reclaim(buffer),
            lambda: host.release(buffer),
        ]
        for use in uses:
            try:
                use()
            except (PageferryError, IndexError) as error:
                later += type(error).__name__ == "BusyError"

    calls: list[Callable[[], object]] = [
        lambda: buffer.read(),
        lambda: buffer.write(b"call"),
        lambda: buffer.fill(io.BytesIO(b"file"), 1),
        lambda: buffer.frame_number(),
        lambda: host.send(scene.a, buffer),
        lambda: host.lend(scene.a, buffer),
        lambda: host.share(scene.a, buffer),
        lambda: host.exchange(scene.a, buffer),
        lambda: host.release(buffer),
        lambda: host.alloc(1),
        lambda: scene.a.frame_number(scene.a.window.base),
        lambda: host.receive(),
    ]
    for call in calls:
        number, more = first, True
        while more:
            buffer = host.alloc(2 * PAGE_SIZE)
            more = at_line(number, call, handler)
            number, lines = number + step, lines + 1
            monitor.audit()
            for end in (host.reclaim, host.release):
                with contextlib.suppress(PageferryError):
                    end(buffer)
            if len(scene.a.peer.queue) > 32:
                _start_again(scene)
    monitor.close()
    print(lines, later)

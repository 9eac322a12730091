"""Every public use of a monitor and of what it gives out, found by looking; a scene for that."""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from guest_elfs import build_test_guests

from vmm import Buffer, HostEndpoint, Machine, Monitor
from vmm.guest.abi import PAGE_SIZE

CLASSES = (Monitor, HostEndpoint, Buffer, Machine)
# What the engine asks of a machine, under its lock, and nobody else.
OF_THE_ENGINE = {"saved", "restore", "done", "see_exit"}


def quiet(name: str, line: str) -> None:
    """Print nothing."""


class Scene:
    """A monitor with machines and buffers in each of their states."""

    def __init__(self, **options: Any) -> None:
        self.monitor = Monitor(**{"pool": "16M", "audit": True, "console": quiet, **options})
        self.elf = build_test_guests() / "idle.elf"
        self.a, self.b = self.spawn("a"), self.spawn("b")
        self.monitor.connect(self.a, self.b)
        self.stopped, self.removed = self.spawn("stopped"), self.spawn("removed")
        self.monitor.kill(self.stopped)
        self.monitor.remove(self.removed)
        host = self.monitor.host
        self.buffer, self.released, self.lent = (host.alloc(PAGE_SIZE) for _ in range(3))
        host.release(self.released)
        host.lend(self.b, self.lent)
        while host.receive():
            pass

    def close(self) -> None:
        """Close the monitor."""
        self.monitor.close()

    def spawn(self, name: str) -> Machine:
        """Make a machine that waits for a message."""
        return self.monitor.spawn(self.elf, name=name, window="2M", memory="4M")

    def owner(self, of: type) -> object:
        """Return the object of a class that is used."""
        objects: tuple[object, ...] = (self.monitor, self.monitor.host, self.buffer, self.a)
        return next(each for each in objects if type(each) is of)

    def good(self, parameter: str) -> Any:
        """Return an argument that is right for a parameter of this name."""
        values: dict[str, Any] = {
            **dict.fromkeys(("machine", "a", "to"), self.a),
            **dict.fromkeys(("buffer", "buffers"), self.buffer),
            **dict.fromkeys(("payload", "data"), b"good"),
            **dict.fromkeys(("tag", "offset"), 0),
            **dict.fromkeys(("both", "writable", "audit", "mappings", "populate"), True),
            **dict.fromkeys(("window", "pool"), "2M"),
            **dict.fromkeys(("ring", "doorbell", "mover", "quota", "copy_below"), None),
            **{"b": self.b, "path": self.elf, "name": "new", "memory": "4M", "stack": "64K"},
            **{"queue": 4, "workers": 1, "console": quiet, "device": "/dev/kvm", "timeout": 0.01},
            **{"bits": 1, "reason": "enough", "size": "4K", "length": 4, "file": io.BytesIO(b"f")},
            **{"huge": False, "gpa": self.a.window.base},
            # Of programs for Linux only, and as a guest has them: not at all.
            **{"args": (), "env": None, "files": None, "root": None, "stdin": b""},
            **{"stdout": None, "stderr": None, "disk": "256M", "clock": "real", "seed": 0},
            **{"dtype": "uint8", "shape": None},  # of arrays
            **{"strace": None, "writable_files": ()},
        }
        return values[parameter]


def methods(of: type) -> Iterator[tuple[str, list[inspect.Parameter]]]:
    """Yield the public methods of a class, and its constructor if users call it: parameters too."""
    for name, member in inspect.getmembers(of, callable):
        if of is Machine and name in OF_THE_ENGINE:
            continue
        if not name.startswith("_") or (of is Monitor and name == "__init__"):
            yield name, list(inspect.signature(member).parameters.values())[1:]


def properties(of: type) -> list[str]:
    """Return the public properties of a class. Plain attributes reach nothing."""
    found = inspect.getmembers(of, lambda member: isinstance(member, property))
    return [name for name, _ in found if not name.startswith("_")]


def bound(scene: Scene, of: type, name: str, changed: dict[str, Any]) -> Callable[[], object]:
    """Return a call of a method with good arguments, all but those that are given."""
    parameters = dict(methods(of))[name]
    method = of if name == "__init__" else getattr(scene.owner(of), name)
    by_place: list[Any] = []
    by_name: dict[str, Any] = {}
    for parameter in parameters:
        value = changed.get(parameter.name, scene.good(parameter.name))
        if parameter.kind is parameter.KEYWORD_ONLY:
            by_name[parameter.name] = value
        else:
            by_place.append(value)
    return lambda: method(*by_place, **by_name)


def uses(scene: Scene) -> dict[str, Callable[[], object]]:
    """Return every use there is, with good arguments."""
    found: dict[str, Callable[[], object]] = {}
    for of in CLASSES:
        for name, _ in methods(of):
            if name not in ("__init__", "close"):
                found[f"{of.__name__}.{name}"] = bound(scene, of, name, {})
        for name in properties(of):
            owner = scene.owner(of)
            found[f"{of.__name__}.{name}"] = lambda owner=owner, name=name: getattr(owner, name)
    chunks = scene.buffer.chunks(1024)
    next(chunks)
    found["next(Buffer.chunks)"] = lambda: next(chunks)
    found["Monitor.__enter__"] = scene.monitor.__enter__
    for machine in (scene.a, scene.b, scene.stopped, scene.removed):
        found[f"repr({machine.name})"] = lambda machine=machine: repr(machine)
    found["memory.read"] = lambda: scene.a.guest.memory.read(0x10000, 8)
    found["memory.write"] = lambda: scene.a.guest.memory.write(0x10000, b"8")
    found["memory.address"] = lambda: scene.a.guest.memory.address
    return found


def outcomes(calls: dict[str, Callable[[], object]]) -> dict[str, list[str]]:
    """Do all of that; return what each gave, or raised."""
    found = {}
    for use, call in calls.items():
        print(use, file=sys.stderr, flush=True)  # the last of these is what crashed
        try:
            found[use] = ["", repr(call())[:80]]
        except Exception as error:
            found[use] = [type(error).__name__, str(error)]
    return found


def _in_a_child(scene: Scene, calls: dict[str, Callable[[], object]]) -> dict[str, list[str]]:
    """Do it in a process that is forked, which must not end this one's monitor."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            found = outcomes(calls)
            scene.monitor.close()
            with Scene().monitor:  # one of its own works
                pass
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = json.loads(pipe.read() or b"{}")
    assert os.waitpid(child, 0)[1] == 0
    assert scene.buffer.read(0, 4) == bytes(4)
    scene.monitor.audit()
    return found  # type: ignore[no-any-return]


def main(mover: str) -> None:
    """Print what every use gives after the end: of the machine, of the monitor, in a child."""
    found = {}
    scene = Scene(mover=mover)
    calls = uses(scene)  # what is to be used has been there before
    found["forked"] = _in_a_child(scene, calls)
    scene.monitor.close()
    found["closed"] = outcomes(calls)
    scene = Scene(mover=mover)
    calls = uses(scene)
    scene.monitor.host.release(scene.buffer)
    scene.monitor.remove(scene.a)
    found["removed"] = outcomes(calls)
    scene.monitor.close()
    print(json.dumps(found))

"""Every public method with every wrong kind of argument: refused at the call, by the argument's
name, with nothing changed. And what Python programs pass is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import decimal
import errno
import inspect
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kvm.every_use import CLASSES, Scene, bound, methods
from kvm.puppets import Stage
from linux_programs import linux_program
from tests_support import descriptors_left, held

from vmm import (
    ConfigError,
    GuestError,
    Machine,
    Monitor,
    PageferryError,
    ResourceError,
)
from vmm.guest import abi
from vmm.linux.spawning import Options

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")


pytestmark = pytest.mark.not_in_lanes("what Python says of its arguments")

REFUSALS = (TypeError, ValueError, IndexError, BufferError, PageferryError)


class World:
    """A scene, and two more whose machines and buffers are strangers to it: one of them closed."""

    def __init__(self) -> None:
        self.scene, self.other, closed = Scene(), Scene(), Scene()
        closed.monitor.close()
        released = memoryview(b"released")
        released.release()
        self.values: dict[str, Any] = {
            "None": None,
            "no text": "",
            "text": "4X",
            "a NUL": "a\0b",
            "lines": "two\nlines",
            "bytes": b"x",
            "193 bytes": b"y" * 193,
            "a released view": released,
            "a view with gaps": memoryview(b"with gaps")[::2],
            "1.5": 1.5,
            "NaN": math.nan,
            "infinity": math.inf,
            "-infinity": -math.inf,
            "-1": -1,
            "0": 0,
            "2**64": 1 << 64,
            "2**200": 1 << 200,
            "-2**200": -(1 << 200),
            "2**20000": 1 << 20000,
            "True": True,
            "False": False,
            "a Decimal NaN": decimal.Decimal("sNaN"),
            "a complex": 1j,
            "a list": [1, 2],
            "a dict": {},
            "an object": object(),
            "a class": int,
            "a function": len,
            "an array": np.zeros(2),
            "its columns": np.zeros((4, 4)).T,
            "a text file": io.StringIO("text"),
            "a monitor": self.scene.monitor,
            "a machine": self.scene.a,
            "a stopped machine": self.scene.stopped,
            "a removed machine": self.scene.removed,
            "a stranger": self.other.a,
            "a machine of a closed monitor": closed.a,
            "a buffer": self.scene.buffer,
            "a buffer that is lent": self.scene.lent,
            "a released buffer": self.scene.released,
            "a stranger's buffer": self.other.buffer,
            "a buffer of a closed monitor": closed.buffer,
        }

    def state(self) -> object:
        """All that a call could have changed, in either monitor and in the process."""
        found = [held(), len(os.listdir("/proc/self/fd"))]  # noqa: PTH208
        return found, [_state(scene) for scene in (self.scene, self.other)]


def _state(scene: Scene) -> object:
    monitor, exchange = scene.monitor, scene.monitor._exchange
    ledger, machines = exchange.ledger, (scene.a, scene.b, scene.stopped)
    peers = [monitor.host.peer, *(machine.peer for machine in machines)]
    return (
        monitor.audit(),
        list(monitor.machines),
        ledger.pool.runs,
        list(ledger.bonds_by_frame),
        [ledger.window(peer.number) for peer in peers if peer.alive],
        [ledger.account(peer.number).charged for peer in peers if peer.alive],
        [(list(peer.queue), peer.sent, peer.received) for peer in peers],
        [sorted((n, e.index, e.may_send) for n, e in peer.table.items()) for peer in peers],
        [(m.state, m.exit_code, m.fault, m.wait, m.closed) for m in machines],
        [m.guest.memory.read(abi.CONTROL_GPA, ctypes.sizeof(abi.Control)) for m in machines],
        list(monitor._standing.line.entries),
        [scene.buffer.read(), scene.buffer.hold, scene.lent.hold],
    )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.scene.close()
    world.other.close()


FLAGS = frozenset({"True", "False"})
TEXTS = frozenset({"no text", "text", "a NUL", "lines"})
ROWS = frozenset({"bytes", "an array"})  # of bytes
SECONDS = frozenset({"None", "0", "1.5", "infinity", "2**64", "2**200", "2**20000"})
MACHINES = frozenset({"a machine", "a stopped machine", "a removed machine"})
NONE, ZERO, NOTHING = frozenset({"None"}), frozenset({"0"}), frozenset[str]()

# What is right for each parameter, of all that is tried. What is not here is to be refused; a
# parameter that is not here is one nobody has thought of.
RIGHT: dict[str, frozenset[str]] = {
    **dict.fromkeys(("a", "b"), MACHINES - {"a removed machine"}),
    "machine": MACHINES,  # there may be nothing left to do
    "to": frozenset({"a machine"}),
    **dict.fromkeys(("buffer", "buffers"), frozenset({"a buffer"})),
    "data": ROWS | {"193 bytes", "a buffer", "a stranger's buffer"},  # which are bytes, too
    "payload": ROWS,
    **dict.fromkeys(("tag", "bits", "offset"), ZERO),
    **dict.fromkeys(("length", "copy_below", "ring"), NONE | ZERO),
    **dict.fromkeys(("both", "writable", "audit", "mappings", "populate", "huge"), FLAGS),
    **dict.fromkeys(("window", "queue", "workers", "size"), NOTHING),
    **dict.fromkeys(("quota", "pool", "doorbell", "mover", "memory", "stack"), NONE),
    **dict.fromkeys(("device", "file", "gpa"), NOTHING),
    "path": frozenset({"lines"}),  # which a file's name may have, but there is no such file
    "name": NONE | {"text"},
    "console": frozenset({"a class", "a function"}),
    "timeout": SECONDS,
    "reason": TEXTS,
    # Of a bare guest, for which nothing is right but what it is without them.
    **dict.fromkeys(("args", "stdin", "disk", "clock", "writable_files"), NOTHING),
    **dict.fromkeys(("root", "stdout", "stderr", "strace"), NONE),
    **dict.fromkeys(("env", "files"), NONE | {"a dict"}),
    "seed": ZERO,
    "dtype": frozenset({"a class"}),
    "shape": NONE | ZERO | {"a list"},
}

# The same of a program for Linux.
OF_A_PROGRAM: dict[str, frozenset[str]] = {
    "args": frozenset({"a dict", "a text file"}),  # of lists
    **dict.fromkeys(("env", "files"), NONE | {"a dict"}),
    "root": NONE,
    "stdin": ROWS | {"193 bytes"},
    **dict.fromkeys(("stdout", "stderr"), NONE),
    "disk": ZERO,
    "clock": NOTHING,
    "strace": NONE | {"a class", "a function"},
    "writable_files": frozenset({"a dict"}),  # of lists, if there is nothing in it
    "seed": ZERO | {"-1", "2**64", "2**200", "-2**200", "2**20000"},
}


def wrong(world: World) -> Iterator[tuple[type, str, str, str]]:
    """Yield a class, a method, one of its parameters, and what is wrong for that."""
    for of in CLASSES:
        for method, parameters in methods(of):
            for parameter in parameters:
                right = RIGHT[parameter.name]
                if (method, parameter.name) == ("send", "buffers"):
                    right |= NONE  # for programs that may have none
                elif method in ("reclaim", "give_back") and parameter.name == "buffers":
                    right = frozenset({"a buffer that is lent"} if method == "reclaim" else ())
                for kind in sorted(world.values.keys() - right):
                    yield of, method, parameter.name, kind


def _names(parameter: str, value: object) -> Iterator[str]:
    """Yield what an error may call an argument: a parameter's name, or what was passed for it."""
    yield parameter.removesuffix("s")
    if isinstance(value, str) and value:
        yield from (value, repr(value))
    if isinstance(value, bytes):
        yield value.decode()
    if isinstance(value, Machine):
        yield value.name


def _complaint(call: Callable[[], object], names: Iterable[str]) -> str | None:
    """Return what is wrong with how a call refuses, if anything is."""
    try:
        result = call()
    except REFUSALS as error:
        text = str(error)
        if not re.fullmatch(r"[^\n]{8,1000}", text):
            return f"not a line: {text!r}"
        if not any(each in text for each in names):
            return f"names nothing: {text}"
        return f"{error!r}" if isinstance(error, KeyError | UnicodeError) else None
    except BaseException as error:
        return f"{error!r}"
    return f"is not refused, but gives {result!r}"


def test_every_method_refuses_every_wrong_argument_by_its_name(world: World) -> None:
    before, tried = world.state(), 0
    for (of, method, parameter), kinds in itertools.groupby(wrong(world), lambda each: each[:3]):
        complaints = []
        for *_, kind in kinds:
            value = world.values[kind]
            call = bound(world.scene, of, method, {parameter: value})
            complaints.append((kind, _complaint(call, _names(parameter, value))))
        where = f"{of.__name__}.{method}({parameter}=...)"
        assert [each for each in complaints if each[1] is not None] == [], where
        assert world.state() == before, where
        tried += len(complaints)
    assert tried > 1500


def test_a_program_refuses_every_wrong_argument_by_its_name(world: World) -> None:
    program, complaints = linux_program("beginnings"), []
    with Monitor(pool="16M") as monitor:
        monitor.remove(monitor.spawn(program, window="2M"))  # what those of one file share stays
        before = held(), monitor.audit()
        for parameter, right in OF_A_PROGRAM.items():
            for kind in sorted(world.values.keys() - right):
                value = world.values[kind]
                spawn = partial(monitor.spawn, program, window="2M", **{parameter: value})
                if (complaint := _complaint(spawn, _names(parameter, value))) is not None:
                    complaints.append((parameter, kind, complaint))
        assert complaints == [], "\n".join(map(str, complaints))
        assert (held(), monitor.audit()) == before


def test_what_is_not_refused_is_known(world: World) -> None:
    """No parameter has been forgotten, and none is here that has gone."""
    names = {p.name for of in CLASSES for _, parameters in methods(of) for p in parameters}
    assert names == RIGHT.keys()
    for of in CLASSES:
        for method, parameters in methods(of):
            for parameter in parameters:
                assert parameter.annotation is not inspect.Parameter.empty, (of, method, parameter)
    assert set().union(*RIGHT.values(), *OF_A_PROGRAM.values()) <= world.values.keys()
    assert OF_A_PROGRAM.keys() == {field.name for field in dataclasses.fields(Options)}


# ---- Whose it is ----


def test_a_machine_that_was_removed_is_not_connected_not_even_by_half() -> None:
    with contextlib.closing(Scene()) as scene:
        tables = [set(machine.peer.table) for machine in (scene.a, scene.b)]
        for a, b in ((scene.a, scene.removed), (scene.removed, scene.a)):
            with pytest.raises(ConfigError, match="'removed' has been removed"):
                scene.monitor.connect(a, b)
        assert [set(machine.peer.table) for machine in (scene.a, scene.b)] == tables


def test_the_same_buffer_twice_is_refused_as_a_whole(stage: Stage) -> None:
    host, a = stage.monitor.host, stage.puppets[0].machine
    buffer, other = host.alloc(1), host.alloc(1)
    for what in (host.send, host.lend, host.share, host.exchange):
        with pytest.raises(GuestError, match="E_OVERLAP: a buffer is given twice"):
            what(a, buffer, other, buffer)
        assert buffer.read() == b"\0"
    host.release(buffer)
    host.release(other)


# ---- Limits of the host's ----


def test_descriptors_that_run_out_are_a_resource_error_that_says_what_to_do(tmp_path: Path) -> None:
    with contextlib.closing(Scene()) as scene:
        image = tmp_path / "fresh.elf"
        image.write_bytes(scene.elf.read_bytes())
        said = r"open files.*ulimit -n"
        errors = []
        for spare in itertools.count():  # none for the file; and for each thing that it has
            try:
                with descriptors_left(spare):
                    scene.monitor.spawn(image, window="2M", memory="4M")
                break
            except ResourceError as error:
                errors.append(error)
                assert "fresh" not in scene.monitor.machines
        assert len(errors) >= 2
        for error in errors:
            assert re.search(said, str(error))
            assert isinstance(error, OSError)
            assert (error.errno, "fresh" in str(error)) == (errno.EMFILE, True)
        before = held()
        for spare in range(2):
            with pytest.raises(ResourceError, match=said), descriptors_left(spare):
                Monitor(pool="16M")
        assert held() == before


def test_a_listener_that_cannot_be_called_is_refused_when_it_is_given(world: World) -> None:
    trace = world.scene.monitor.trace
    for listener in (None, "print", 3):
        with pytest.raises(TypeError, match=r"^listener must be a function, not \w+$"):
            trace.listen(listener)  # type: ignore[arg-type]
    assert not trace

"""What is used after its end says so: no use of it reaches memory that is no longer there."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import io
import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import pageferry
from kvm.every_use import Scene
from kvm.puppets import Stage, spans_of

from vmm import AccessError, Buffer, ClosedError, ConfigError
from vmm.guest.abi import PAGE_SIZE, Status
from vmm.memory import mapping
from vmm.memory.movers import MOVERS

pytestmark = pytest.mark.not_in_lanes("what Python says of what is closed")

TESTS = Path(__file__).resolve().parent.parent

# What is still true when all is over. Everything else has to say that it is.
STILL_TRUE = {
    *("Buffer.size", "Machine.name", "Machine.number", "Machine.window", "Machine.outcome"),
    *("Machine.progress", "repr(a)", "repr(b)", "repr(stopped)", "repr(removed)"),
}


@functools.cache
def after(mover: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Return what every use gave after the end, in a process that may crash over it."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from kvm import every_use as every; "
    ended = pageferry(code=f"{code}every.main({mover!r})")
    assert ended.code == 0, ended.err[-300:]
    return json.loads(ended.out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_after_close_every_use_is_a_closed_error_or_still_true(mover: str) -> None:
    found = after(mover)["closed"]
    assert {use for use, (error, _) in found.items() if not error} == STILL_TRUE
    assert {error for error, _ in found.values()} == {"", "ClosedError"}
    assert all("\n" not in text and "closed" in text for error, text in found.values() if error)
    assert found["Machine.progress"][1] == "(0, 0)"
    assert all(", closed>" in found[f"repr({what})"][1] for what in ("a", "b", "stopped"))


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_a_forked_child_is_told_that_the_monitor_is_its_parents(mover: str) -> None:
    found = after(mover)["forked"]
    of_guest = {use for use in found if use.startswith("memory.")}
    assert {use for use, (error, _) in found.items() if not error} - of_guest == STILL_TRUE
    assert {error for error, _ in found.values()} <= {"", "ClosedError"}
    assert "forked" in found["Buffer.read"][1]


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_a_machine_that_was_removed_and_a_buffer_that_was_released_say_so(mover: str) -> None:
    found = after(mover)["removed"]
    of_these = {
        use: result for use, result in found.items() if use.startswith(("Machine", "Buffer"))
    }
    wrong = {use for use, (error, _) in of_these.items() if not error} - STILL_TRUE
    assert wrong == set()
    assert {error for error, _ in of_these.values()} == {"", "ClosedError"}
    assert found["memory.read"][0] == found["next(Buffer.chunks)"][0] == "ClosedError"
    # What is asked of the monitor about it is refused, or nothing is left to be done.
    errors = {
        use: error for use, (error, _) in found.items() if use.startswith("Monitor") and error
    }
    assert errors == {"Monitor.connect": "ConfigError"}
    assert found["HostEndpoint.send"] == [
        "ClosedError",
        "the buffer is no longer the host's: it has been sent or released",
    ]


def test_a_buffer_does_not_reach_who_is_at_its_address_after_the_end() -> None:
    scene = Scene()
    address, fd = scene.buffer.address, os.memfd_create("other")
    os.write(fd, b"somebody else's".ljust(PAGE_SIZE))
    scene.monitor.close()
    mine = mapping.copy(address, PAGE_SIZE, fd, replace=False)  # unless it is in use already
    os.close(fd)
    for use in (
        scene.buffer.read,
        lambda: scene.buffer.write(b"x"),
        scene.buffer.frame_number,
        lambda: scene.monitor.host.release(scene.buffer),
    ):
        with pytest.raises(ClosedError):
            use()
    if mine:
        assert ctypes.string_at(address, 15) == b"somebody else's"
        mapping.Mapping(address, PAGE_SIZE).close()


# ---- Addresses of a live monitor ----


def test_a_frame_number_is_that_of_a_page_which_is_the_machines(stage: Stage) -> None:
    a, b, _ = stage.puppets
    (own,) = a.alloc(2)
    assert a.machine.frame_number(own.gpa) == a.machine.frame_number(own.gpa + 5)
    for gpa in (a.base - 1, a.machine.window.end, 0, -1, 1 << 64):
        with pytest.raises(IndexError, match=r"gpa .* is not within a's window"):
            a.machine.frame_number(gpa)
    with pytest.raises(AccessError, match="is not a's at present"):
        a.machine.frame_number(own.gpa + 2 * PAGE_SIZE)  # nothing has ever been there
    assert a.lend(b, (own.gpa, 1)) is Status.OK
    with pytest.raises(AccessError, match="is not a's at present"):
        a.machine.frame_number(own.gpa)  # it is b's for now
    (loan,) = spans_of(b.one())
    assert b.machine.frame_number(loan.gpa) == b.machine.frame_number(loan.gpa)
    a.machine.frame_number(own.gpa + PAGE_SIZE)
    assert a.reclaim((own.gpa, 1)) is Status.OK
    with pytest.raises(AccessError, match="is not b's at present"):
        b.machine.frame_number(loan.gpa)
    a.machine.frame_number(own.gpa)


def test_a_machine_that_has_stopped_has_no_frames() -> None:
    scene = Scene()
    with scene.monitor, pytest.raises(AccessError, match="is not stopped's at present"):
        scene.stopped.frame_number(scene.stopped.window.base)


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_what_is_closed_while_others_use_it_is_closed_to_them(mover: str) -> None:
    """Whichever comes first, nobody finds it half closed."""
    scene = Scene(mover=mover, audit=False)
    host, buffer = scene.monitor.host, scene.monitor.host.alloc(3 << 20)
    ended: list[str] = []

    def use(what: Callable[[], object]) -> None:
        try:
            while True:
                what()
        except ClosedError as error:
            ended.append(str(error))

    def move() -> None:
        host.release(host.alloc(64 << 10))
        assert scene.a.progress == (0, 0)

    actions: list[Callable[[], object]] = [
        buffer.read,
        lambda: buffer.write(bytes(2 << 20)),
        lambda: list(buffer.chunks(1000)),
        lambda: buffer.fill(io.BytesIO(bytes(PAGE_SIZE)), 5),
        buffer.frame_number,
        move,
        host.receive,
        scene.monitor.audit,
        lambda: scene.monitor.remove(scene.monitor.spawn(scene.elf, name="new", window="2M")),
    ]
    threads = [threading.Thread(target=use, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    scene.monitor.close()
    for thread in threads:
        thread.join(20)
    assert len(ended) == len(actions)


def test_a_monitor_that_nobody_closes_warns_once_is_closed_and_ends_no_process() -> None:
    code = f"""if True:
    import gc, os, sys, time, warnings
    sys.path.insert(0, {str(TESTS)!r})
    from kvm.every_use import Scene
    def drop():
        scene = Scene()
        scene.monitor.run()  # there is a clock's thread from here on
        return scene.buffer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        buffer = drop()
        gc.collect()
        print(buffer.read(0, 2))
        del buffer
        gc.collect()
    print([each.category.__name__ for each in caught], *(each.message for each in caught))
    kept = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")[:-1]]
    kept = [name for name in kept if "kvm" in name or "memfd" in name]
    until = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < until:
        time.sleep(0.001)
    print(kept, len(os.listdir("/proc/self/task")))
    scene = Scene()
    scene.monitor.run()
    """
    ended = pageferry(code=code)
    assert ended.code == 0
    assert ended.out.splitlines() == [
        r"b'\x00\x00'",
        "['ResourceWarning'] unclosed <Monitor of 3 machines>",
        "[] 1",
    ], ended


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_a_handler_that_comes_at_any_line_of_a_call_reaches_nothing_that_has_gone(
    mover: str,
) -> None:
    """It is served, or told to come later; the books balance after each. The movers have most lines
    in common.
    """
    first, step = 1 + sorted(MOVERS).index(mover) % 2, 2
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); from kvm import interrupted_use as use; "
    )
    ended = pageferry(code=f"{code}use.main({mover!r}, {first}, {step})")
    assert ended.code == 0, ended.err[-600:]
    lines, later = map(int, ended.out.split())
    assert (lines > 1500 // step, later > lines) == (True, True)


def test_a_child_that_is_forked_while_others_run_waits_for_no_lock() -> None:
    code = f"""if True:
    import os, signal, sys, threading, time
    sys.path.insert(0, {str(TESTS)!r})
    from kvm.every_use import Scene
    from vmm import ClosedError
    scene = Scene(workers=2, audit=False)
    def churn():
        for _ in range(10**9):
            try:
                scene.monitor.host.release(scene.monitor.host.alloc(1))
            except ClosedError:
                return
    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(20):
        time.sleep(0.002)
        child = os.fork()
        if not child:
            signal.alarm(10)  # ends it, if it waits for what nobody has
            try:
                scene.monitor.host.alloc(1)
            except ClosedError:
                scene.monitor.close()
                os._exit(0)
            os._exit(1)
        codes.append(os.waitpid(child, 0)[1])
    scene.monitor.audit()
    scene.monitor.close()
    print(set(codes))
    """
    ended = pageferry(code=code)
    assert (ended.code, ended.out) == (0, "{0}\n"), ended


def test_nothing_that_owns_what_it_closes_is_copied(scene: Scene) -> None:
    """A copy would close, or name, what is not its own."""
    things = (scene.monitor, scene.monitor.host, scene.buffer, scene.a, scene.a.guest.vm)
    for thing in things:
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                make(thing)


# ---- Files that a buffer is filled from ----


class Odd:
    """A file that does something when it is read, and says that it has read so much."""

    def __init__(self, act: Callable[[memoryview], object], says: object = 4) -> None:
        self.act = act
        self.says = says
        self.kept: list[memoryview] = []

    def readinto(self, into: memoryview) -> object:
        into[:4] = b"odd!"
        self.kept.append(into)
        self.act(into)
        return self.says


def nothing(into: memoryview) -> None:
    """Do no more."""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.closing(Scene()) as scene:
        yield scene


def test_a_file_that_keeps_what_it_was_given_has_none_of_the_buffers_memory(scene: Scene) -> None:
    file = Odd(nothing)
    assert scene.buffer.fill(file, 1) == 4
    file.kept[0][:4] = b"late"
    assert scene.buffer.read(0, 6) == b"\0odd!\0"


@pytest.mark.parametrize("act", ["send", "release", "lend", "close"])
def test_a_file_may_call_the_monitor_and_take_the_buffer_away(scene: Scene, act: str) -> None:
    host, buffer = scene.monitor.host, scene.buffer
    acts: dict[str, Callable[[], object]] = {
        "send": lambda: host.send(scene.a, buffer),
        "release": lambda: host.release(buffer),
        "lend": lambda: host.lend(scene.a, buffer),
        "close": scene.monitor.close,
    }
    with pytest.raises((ClosedError, AccessError)):
        buffer.fill(Odd(lambda into: acts[act]()), 0)


def test_a_file_is_read_without_the_monitors_lock(scene: Scene) -> None:
    def from_another_thread(into: memoryview) -> None:
        thread = threading.Thread(target=scene.monitor.audit)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    assert scene.buffer.fill(Odd(from_another_thread), 0) == 4


def test_a_file_that_lets_its_memory_shrink_gives_less_than_it_says(scene: Scene) -> None:
    def shrink(into: memoryview) -> None:
        whole = into.obj
        into.release()
        del whole[2:]  # type: ignore[attr-defined]

    with pytest.raises(ConfigError, match=r"readinto\(\) returned 4 is more than 2"):
        scene.buffer.fill(Odd(shrink), 0)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (None, BlockingIOError),
        (-1, ConfigError),
        (PAGE_SIZE + 1, ConfigError),
        (1 << 70, ConfigError),
        (True, TypeError),
        (1.0, TypeError),
        ("4", TypeError),
    ],
)
def test_a_file_that_makes_no_sense_changes_nothing(
    scene: Scene, says: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"file"):
        scene.buffer.fill(Odd(nothing, says), 0)
    assert scene.buffer.read() == bytes(PAGE_SIZE)


def test_a_file_that_raises_changes_nothing_and_one_that_cannot_be_kept_is_not_read(
    scene: Scene,
) -> None:
    def fail(into: memoryview) -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        scene.buffer.fill(Odd(fail), 0)
    assert scene.buffer.read() == bytes(PAGE_SIZE)
    file = Odd(nothing)
    with pytest.raises(AccessError):
        scene.lent.fill(file, 0)
    with pytest.raises(IndexError):
        scene.buffer.fill(file, PAGE_SIZE + 1)
    assert file.kept == []


def test_a_buffers_size_is_not_to_be_changed(scene: Scene) -> None:
    with pytest.raises(AttributeError):
        scene.buffer.size = 1 << 30  # type: ignore[misc]
    with pytest.raises(ConfigError, match="more than 1 pages hold"):
        Buffer(scene.buffer._window, scene.buffer.extent, PAGE_SIZE + 1)

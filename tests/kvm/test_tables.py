"""Every table of the monitor's has a bound: what guests do again and again makes none of them grow.

The tables are found by walking all objects that a monitor has.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvm.puppets import Puppet, Stage, descriptor, spans_of

from vmm import Monitor
from vmm.guest.abi import EXTENTS_MAX, PAGE_SIZE, Hold, Operation, WaitFor

pytestmark = pytest.mark.not_in_lanes("what the monitor keeps is the same, whatever guests run on")

ROUNDS = 4
SLACK = 16  # what a table may have by chance at one moment more than at another

_LEAVES = (type, types.ModuleType, types.FunctionType, str, bytes, int, float, memoryview)


def objects(root: object) -> Iterator[object]:
    """Yield all that can be reached from an object, as far as it is ours or a plain container."""
    seen, todo = {id(root)}, [root]
    while todo:
        one = todo.pop()
        yield one
        for other in gc.get_referents(one):
            ours = type(other).__module__.startswith("vmm")
            if id(other) in seen or isinstance(other, _LEAVES):
                continue
            if ours or isinstance(other, dict | list | tuple | set | deque):
                seen.add(id(other))
                todo.append(other)


def attributes(one: object) -> Iterator[tuple[str, object]]:
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(one, name):
                yield name, getattr(one, name)
    yield from getattr(one, "__dict__", {}).items()


def tables(monitor: Monitor) -> dict[str, int]:
    """Return how long the longest table of each name is: those that change, of all our objects."""
    found: dict[str, int] = {}
    for one in objects(monitor):
        if not type(one).__module__.startswith("vmm"):
            continue
        for name, value in attributes(one):
            if isinstance(value, dict | list | set | deque):
                key = f"{type(one).__name__}.{name}"
                found[key] = max(found.get(key, 0), len(value))
    return found


def storm(a: Puppet, b: Puppet, c: Puppet) -> None:
    """Do everything that a guest can ask for, sense and nonsense, and have nothing afterwards."""
    (whole,) = a.alloc(2 * 64)
    pages = [(whole.gpa + 2 * index * PAGE_SIZE, 1) for index in range(64)]
    for operation in (Operation.LEND, Operation.SHARE):
        a.ask(*[descriptor(operation, b.number, page) for page in pages])
        a.ask(*[descriptor(operation, b.number, page) for page in pages])  # refused
        borrowed = [spans_of(m)[0] for m in b.inbox() if m.operation == operation]
        b.ask(*[descriptor(Operation.RETURN, a.number, page) for page in borrowed[:32]])
        a.ask(*[descriptor(Operation.RECLAIM, 0, page) for page in pages])
        b.give_up(Operation.RELEASE, (Hold.REVOKED,))
    a.ask(*[descriptor(Operation.SEND, c.number, page) for page in pages[:32]])
    a.ask(*[descriptor(Operation.EXCHANGE, c.number, page) for page in pages[32:]])
    c.ask(*[descriptor(Operation.ALLOC, 0, *[(0, 1)] * EXTENTS_MAX) for _ in range(8)])
    c.ask(*[descriptor(Operation.QUERY, 0, page) for page in pages])
    c.ask(*[descriptor(number, 99, (1, 1)) for number in range(64)])
    for puppet in (a, b, c):
        for peer in (a, b, c):
            for wait_for in (0, WaitFor.MESSAGE, WaitFor.ROOM, WaitFor.NOTICE, 7, 99):
                puppet.wait(wait_for, peer.number, timeout_us=1)
        puppet.send(puppet.monitor.host.peer.number, payload=b"x")
        puppet.inbox()
        puppet.give_up(Operation.RELEASE, (Hold.OWNED,))
        puppet.seen = int(puppet.desk.kept)
    while a.monitor.host.receive() is not None:
        pass


def test_no_table_grows_with_what_guests_do(monitor: Monitor) -> None:
    stage = Stage(monitor, "abc", queue=200)
    a, b, c = stage.puppets
    for _ in range(2):
        storm(a, b, c)
    before = tables(monitor)
    for _ in range(ROUNDS):
        storm(a, b, c)
    after = tables(monitor)
    grown = {
        name: (before.get(name, 0), size)
        for name, size in after.items()
        if size > before.get(name, 0) + SLACK
    }
    assert grown == {}
    assert {"IntervalMap.items", "Deadlines.entries", "Peer.waiters", "Roster._peers"} <= set(
        after
    ), "the walk does not find the tables any more"


def test_what_has_been_removed_is_not_kept_with_its_image(
    open_monitor: Callable[..., Monitor], test_guest: Callable[[str], Path], mover: str
) -> None:
    """Whoever knew it remembers its name, and that it has stopped."""
    monitor = open_monitor(mover=mover, pool="16M")
    machine = monitor.spawn(test_guest("idle"), name="m", window="2M")
    gone = weakref.ref(machine)
    monitor.remove(machine)
    monitor.run(10)
    monitor.audit()  # a turn of its own: the last one, and who was to run, are forgotten by then
    del machine
    gc.collect()
    assert gone() is None

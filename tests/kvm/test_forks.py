"""A process that is forked sees nothing of its parent's machines and pages, and disturbs none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvm.puppets import Stage

from vmm import Monitor
from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.movers import MOVERS
from vmm.memory.pagemap import populated

pytestmark = pytest.mark.not_in_ept("the kernel's fork is the same, whatever translates")


def in_child(act: Callable[[], object]) -> None:
    """Do something in a forked child; raise what it raises."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, in Python 3.12
        child = os.fork()
    if not child:
        try:
            act()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as errors:
        said = errors.read()
    _, status = os.waitpid(child, 0)
    assert not status, f"it ended with {status}"
    assert not said, said


def unreadable(address: int) -> bool:
    try:
        mapping.touch(address)
    except OSError:
        return True
    return False


def open_files() -> Iterator[str]:
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(path.readlink())


@pytest.mark.parametrize("mover", MOVERS)
def test_a_child_sees_no_page_no_machine_and_no_descriptor(mover: str) -> None:
    with Monitor(mover=mover, pool="64M") as monitor:
        stage = Stage(monitor, "ab", window="8M")
        a, b = stage.puppets
        small, large = monitor.host.alloc(PAGE_SIZE), monitor.host.alloc(4 << 20)
        for buffer in (small, large):
            buffer.write(b"secret" * 100)
        (span,) = a.alloc(2)
        a.write(span.gpa, 0x5EC7E7)
        places = [small.address, large.address, large.address + (2 << 20)]
        private = a.machine.guest.memory.address
        assert not any(map(unreadable, places))

        def child() -> None:
            # Where views may be alive there are zeros, and no hole.
            assert all(unreadable(at) or ctypes.string_at(at, 6) == bytes(6) for at in places)
            assert not any(file.startswith("anon_inode:kvm") for file in open_files())
            assert not any("pageferry" in file or "/dev/kvm" in file for file in open_files())
            maps = Path("/proc/self/maps").read_text()
            assert "pageferry" not in maps
            assert "kvm" not in maps
            assert not populated(private, 1 << 20)  # as if it were new

        in_child(child)
        assert large.read(0, 6) == b"secret"
        assert a.send(b, span) == 0
        (message,) = b.inbox()
        assert b.read(message.extents[0].gpa, 1) == [0x5EC7E7]
        monitor.host.send(a.machine, small, large)
        monitor.audit(mappings=True)


@pytest.mark.parametrize("mover", MOVERS)
def test_a_child_can_have_a_monitor_of_its_own(mover: str) -> None:
    def child() -> None:
        with Monitor(mover=mover, pool="16M") as own:
            buffer = own.host.alloc(3 << 20)
            buffer.write(b"own")
            assert buffer.read(0, 3) == b"own"
            own.audit(mappings=True)

    with Monitor(mover=mover, pool="16M") as monitor:
        buffer = monitor.host.alloc(3 << 20)
        in_child(child)
        assert buffer.read(0, 3) == bytes(3)

"""However a monitor, buffers, views and the interpreter end, the process goes on, or ends well."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from command import pageferry

from vmm import Monitor
from vmm.guest.abi import PAGE_SIZE
from vmm.memory import mapping
from vmm.memory.movers import MOVERS

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")

pytestmark = pytest.mark.not_in_lanes("what Python does with its memory")

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_in_whatever_order_all_of_it_ends(mover: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from kvm import buffer_ends as ends; "
    ended = pageferry(code=f"{code}ends.main({mover!r})")
    assert ended.code == 0, ended.err[-3000:]
    assert "'used_with_care': 256" in ended.out, ended
    assert ended.out.count(": 0") == 6, ended
    assert "Fatal" not in ended.err, ended.err[-3000:]
    assert ended.out.split()[-1] == "144"


@pytest.mark.parametrize("mover", sorted(MOVERS))
def test_views_keep_their_bytes_when_the_monitor_is_closed_and_their_memory_only(
    mover: str,
) -> None:
    with Monitor(mover=mover, pool="64M") as monitor:
        other, buffer = monitor.host.alloc("8M"), monitor.host.alloc("4M")
        other.write(b"o" * (8 << 20))
        array = buffer.array()
        array[:] = 7
        address = buffer.address
        del other
    assert len(array) == int(array.sum()) // 7 == 4 << 20
    array[5] = 9
    assert array[5] == 9
    part = array[PAGE_SIZE:]
    del array, buffer
    gc.collect()
    assert (part == 7).all()
    del part
    gc.collect()
    with pytest.raises(OSError, match="reading at"):
        mapping.touch(address)


def test_an_array_that_holds_only_the_buffer_ends_no_process() -> None:
    """As `ndarray(buffer=)` does, which lets go of the view before it uses it."""
    with Monitor(pool="16M") as monitor:
        buffer = monitor.host.alloc(PAGE_SIZE)
        buffer.write(b"abc")
        try:
            array = np.ndarray(8, np.uint8, buffer)
        except BufferError as error:  # where Python asks for each view
            assert "array()" in str(error)
            array = np.ndarray(8, np.uint8, buffer.view())
            with pytest.raises(BufferError):
                monitor.host.release(buffer)
        else:
            monitor.host.release(buffer)
            assert not array.any()
        address = array.__array_interface__["data"][0]
    array[:] = 1
    assert array.sum() == 8
    del array, buffer
    Monitor(pool="16M").close()
    with pytest.raises(OSError, match="reading at"):
        mapping.touch(address)

"""What Python programs pass is taken: any bytes, sizes as text, NumPy's numbers, any path."""

from __future__ import annotations

import array
import contextlib
import ctypes
import decimal
import fractions
import math
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm.every_use import Scene

from vmm import ConfigError, GuestImageError, State

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")


pytestmark = pytest.mark.not_in_lanes("what Python says of its arguments")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with contextlib.closing(Scene()) as scene:
        yield scene


class Record(ctypes.BigEndianStructure):
    """Bytes that no memoryview can be cast from."""

    _fields_ = (("a", ctypes.c_uint16), ("b", ctypes.c_uint32))


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        bytearray(b"hello"),
        memoryview(b"hello"),
        memoryview(b"hello!")[1:5],
        memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
        array.array("I", [1, 2, 3]),
        array.array("d", [0.5]),
        (ctypes.c_uint16 * 3)(1, 2, 3),
        Record(1, 2),
        mapped(b"hello"),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(3, dtype=">i4"),
        np.zeros(3, dtype=[("a", "u1"), ("b", "f8")]),
        np.array(7),
        np.frombuffer(b"read only", dtype=np.uint8),
        np.zeros((0, 4)),
        b"",
    ],
    ids=lambda data: type(data).__name__,
)
def test_anything_with_the_buffer_protocol_is_written_and_sent(scene: Scene, data: Any) -> None:
    host, raw = scene.monitor.host, memoryview(data).tobytes()
    buffer = host.alloc(100)
    buffer.write(data, 1)
    assert buffer.read() == b"\0" + raw + bytes(99 - len(raw))
    host.send(scene.a, payload=data, tag=1)
    assert scene.a.peer.queue[-1].payload == raw
    host.release(buffer)


@pytest.mark.parametrize("size", [3 << 20, (1 << 20) + 1])
def test_what_is_large_is_written_and_read_whole(scene: Scene, size: int) -> None:
    host = scene.monitor.host
    data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    buffer = host.alloc(size + 7)
    buffer.write(data, 7)
    assert buffer.read(7) == data.tobytes()
    assert buffer.read(8, size - 1) == data[1:].tobytes()
    assert b"".join(buffer.chunks("300K")) == bytes(7) + data.tobytes()
    with pytest.raises(IndexError):
        buffer.write(data, 8)
    host.release(buffer)


def test_a_payload_is_what_it_was_at_the_call(scene: Scene) -> None:
    payload = bytearray(b"before")
    scene.monitor.host.send(scene.a, payload=payload)
    payload[:] = b"after!"
    assert scene.a.peer.queue[-1].payload == b"before"


def test_numbers_of_numpys_are_numbers() -> None:
    number = np.int64
    with contextlib.closing(Scene(pool=number(16 << 20), workers=np.uint8(1))) as scene:
        host = scene.monitor.host
        machine = scene.monitor.spawn(
            scene.elf,
            name="numpy",
            window=number(2 << 20),
            memory=np.uint32(4 << 20),
            stack=number(64 << 10),
            queue=np.int8(1),
            quota=number(1 << 20),
        )
        buffer = host.alloc(number(100))
        buffer.write(b"word", number(4))
        assert buffer.read(np.uint16(4), number(4)) == b"word"
        assert len(list(buffer.chunks(number(50)))) == 2
        host.send(machine, buffer, tag=np.uint64((1 << 64) - 1))
        assert machine.peer.queue[0].tag == (1 << 64) - 1
        assert type(machine.peer.queue[0].tag) is int
        scene.monitor.notice(machine, np.uint32(0xFFFFFFFF))
        assert machine.name == "numpy"


def test_sizes_are_text_wherever_sizes_are_taken() -> None:
    with contextlib.closing(Scene(pool="16M", copy_below="64K")) as scene:
        options = {"window": "2M", "memory": "4M", "stack": "64K", "quota": "1M"}
        scene.monitor.spawn(scene.elf, name="text", **options)
        buffer = scene.monitor.host.alloc("1.5M")
        assert (buffer.size, scene.monitor.copy_below) == (3 << 19, 64 << 10)
        assert len(buffer.read(0, "1K")) == 1024
        assert [len(chunk) for chunk in buffer.chunks("1M")] == [1 << 20, 1 << 19]
        buffer.write(b"usable", (3 << 19) - 6)


@pytest.mark.parametrize(
    "timeout",
    [0, 0.01, decimal.Decimal("0.01"), fractions.Fraction(1, 100), np.float32(0.01), np.int64(0)],
    ids=repr,
)
def test_a_timeout_is_any_number_of_seconds(timeout: Any) -> None:
    with contextlib.closing(Scene()) as scene:
        scene.monitor.run(timeout)
        assert scene.a.fault is None or scene.a.fault.kind == "timeout"


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1 << 2000, None], ids=lambda t: str(t)[:9])
def test_a_timeout_may_be_for_ever(timeout: Any) -> None:
    with contextlib.closing(Scene()) as scene:
        scene.monitor.run(timeout)
        assert scene.a.state is State.PARKED


class Somewhere:
    """A path object that is no Path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_a_path_is_text_bytes_or_a_path_object(tmp_path: Path) -> None:
    with contextlib.closing(Scene()) as scene:
        odd = tmp_path / os.fsdecode(b"odd\xff.elf")
        odd.write_bytes(scene.elf.read_bytes())
        kinds = (str(scene.elf), os.fsencode(scene.elf), scene.elf, Somewhere(scene.elf), odd)
        for index, path in enumerate(kinds):
            scene.monitor.spawn(path, name=f"path{index}", window="2M", memory="4M")
        with pytest.raises(ConfigError, match="printable"):
            scene.monitor.spawn(odd, window="2M", memory="4M")  # for want of a name
        for nothing in (tmp_path, tmp_path / "missing.elf", Path("/dev/null")):
            with pytest.raises(GuestImageError, match=re.escape(str(nothing))):
                scene.monitor.spawn(nothing)
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with pytest.raises(GuestImageError, match="not a regular file"):
            scene.monitor.spawn(fifo)


def test_the_reason_of_a_kill_is_one_line_that_can_be_printed() -> None:
    with contextlib.closing(Scene()) as scene:
        scene.monitor.kill(scene.a, "two\nlines \x1b[31m")
        assert scene.a.fault is not None
        assert scene.a.fault.reason == "two lines \N{REPLACEMENT CHARACTER}[31m"

"""A buffer speaks the buffer protocol: views of its pages, which fence what would take them."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvm.puppets import Puppet, Span, Stage, spans_of

from vmm.endpoint import Buffer, HostEndpoint
from vmm.errors import AccessError, ClosedError, ConfigError, GuestError, LiveViewError
from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Hold, Operation, Status

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")

# What a buffer that has nothing to give out says. Before Python 3.12 it is not asked: ValueError.
NOTHING = (AccessError, ClosedError, ValueError)
# Every way to hold its memory.
VIEWS: dict[str, Callable[[Buffer], Any]] = {
    "memoryview": memoryview,
    "view": Buffer.view,
    "slice": lambda b: memoryview(b)[3:5],
    "cast": lambda b: b.view().cast("I")[1:],
    "child": lambda b: memoryview(memoryview(b)),
    "array": lambda b: b.array(),
    "array slice": lambda b: b.array("uint16", (8, 4), 4)[2:, ::2],
    "reshape": lambda b: b.array().reshape(2, -1).T,
    "frombuffer": lambda b: np.frombuffer(b, np.uint8),
    "asarray": np.asarray,
    "from_dlpack": np.from_dlpack,
    "view of an array": lambda b: memoryview(b.array()[5:]),
    "ndarray": lambda b: np.ndarray(8, np.uint8, b.view()),
    "iterator": lambda b: iter(memoryview(b)),
    "BytesIO reader": lambda b: io.BufferedReader(io.BytesIO(b.view())) and b.view(),
}


@pytest.fixture
def host(one: Stage) -> HostEndpoint:
    return one.monitor.host


def filled(host: HostEndpoint, size: int = 2 * PAGE_SIZE) -> Buffer:
    buffer = host.alloc(size)
    buffer.write(bytes(range(256)) * (size // 256))
    return buffer


def of_puppet(puppet: Puppet, operation: Operation, pages: int = 1, **fields: int) -> Buffer:
    """Let a puppet send, lend or share pages to the host; return them there."""
    (own,) = puppet.alloc(pages)
    puppet.write(own.gpa, 0x41, pages)
    length = pages * PAGE_SIZE
    assert puppet.do(operation, abi.PEER_HOST, own, length=length, **fields) is Status.OK
    received = puppet.monitor.host.receive()
    assert received is not None
    return received.buffers[0]


# ---- The protocol ----


def test_a_buffer_is_read_and_written_by_whatever_takes_bytes(
    host: HostEndpoint, tmp_path: Path
) -> None:
    buffer = filled(host, 5000 // 256 * 256)
    content = buffer.read()
    assert (len(buffer), bytes(buffer), bytearray(buffer)) == (len(content), content, content)
    assert hashlib.sha256(buffer).digest() == hashlib.sha256(content).digest()
    assert b"".join([buffer, b"!"]) == content + b"!"
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(buffer)
    with path.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), buffer, 7) == len(buffer)
        assert file.readinto(buffer) == len(buffer)
    assert buffer.read() == content[:7] + content[:-7]
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"over the wire")
        assert right.recv_into(buffer) == 13
    assert buffer.read(0, 13) == b"over the wire"
    host.release(buffer)


def test_views_are_of_the_memory_itself(host: HostEndpoint) -> None:
    buffer = filled(host)
    view, array = memoryview(buffer), buffer.array()
    assert (view.format, view.itemsize, view.shape, view.readonly) == (
        "B",
        1,
        (len(buffer),),
        False,
    )
    view[0], array[1] = 201, 202
    np.from_dlpack(buffer)[2] = 203
    np.asarray(buffer)[3] = 204
    np.frombuffer(buffer, np.uint8)[4] = 205
    assert buffer.read(0, 5) == view[:5] == array[:5].tobytes() == bytes(range(201, 206))
    buffer.write(b"written", 100)
    assert array[100:107].tobytes() == b"written"
    assert array.__array_interface__["data"] == (buffer.address, False)
    del view, array
    host.release(buffer)


def test_an_array_has_any_type_and_shape_that_there_are_bytes_for(host: HostEndpoint) -> None:
    buffer = filled(host, PAGE_SIZE)
    assert buffer.array().shape == (PAGE_SIZE,)
    assert buffer.array("float64", offset=1).shape == (511,)
    assert buffer.array(np.uint16, 3, offset=2).tolist() == [0x0302, 0x0504, 0x0706]
    assert buffer.array(">u4", (2, np.int64(4))).shape == (2, 4)
    assert buffer.array("u1", ()).shape == ()
    assert buffer.array("u1", (0, 5), PAGE_SIZE).shape == (0, 5)
    record = buffer.array([("a", "u1"), ("b", "<u2")], 2, 1)
    assert (record["a"].tolist(), record["b"].tolist()) == ([1, 4], [0x0302, 0x0605])
    for arguments in (
        ("u1", PAGE_SIZE + 1),
        ("u8", (2, 1 << 70)),
        ("u1", 1, PAGE_SIZE),
        ("u1", 1, -1),
    ):
        with pytest.raises(IndexError, match=f"not within the buffer's {PAGE_SIZE} bytes"):
            buffer.array(*arguments)
    for arguments in (("O",), ("no type",), ("S0",), ("u1", -1), ("u1", 1.5), ("u1", "12")):
        with pytest.raises(ConfigError, match=r"^(dtype|shape) "):
            buffer.array(*arguments)
    del record
    host.release(buffer)


def test_without_numpy_only_arrays_are_missing(
    host: HostEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = filled(host)
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(ImportError, match="arrays need NumPy: pip install numpy"):
        buffer.array()
    assert buffer.view()[1] == 1
    host.release(buffer)


# ---- The fence ----


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_a_view_that_is_alive_keeps_the_pages(one: Stage, make: Callable[[Buffer], Any]) -> None:
    a, host = one.puppets[0], one.monitor.host
    buffer, other = filled(host), filled(host)
    takes: list[Callable[[], object]] = [
        lambda: host.send(a.machine, buffer),
        lambda: host.send(a.machine, other, buffer),
        lambda: host.exchange(a.machine, buffer),
        lambda: host.lend(a.machine, buffer),
        lambda: host.lend(a.machine, other, buffer, writable=False),
        lambda: host.release(buffer),
    ]
    before, view = one.monitor.audit(), make(buffer)
    for take in takes:
        with pytest.raises(BufferError, match="a view of the buffer is alive") as refused:
            take()
        assert isinstance(refused.value, LiveViewError)
    assert one.monitor.audit(mappings=True) == before
    assert (buffer.hold, other.hold, bytes(buffer)) == (Hold.OWNED, Hold.OWNED, bytes(other))
    del view
    host.exchange(a.machine, buffer)  # it is as if there had been none
    assert bytes(buffer) == bytes(len(buffer))
    host.send(a.machine, other, buffer)
    for gone in (buffer, other):
        for use in (memoryview, Buffer.view, np.asarray, np.from_dlpack, hashlib.sha256):
            with pytest.raises(NOTHING):
                use(gone)


def test_what_is_released_of_a_view_is_no_view(one: Stage) -> None:
    buffer = filled(one.monitor.host)
    with memoryview(buffer) as view, pytest.raises(BufferError):
        one.monitor.host.release(buffer)
    array = np.asarray(buffer.view())
    part = array[3:]
    del array
    with pytest.raises(BufferError):
        one.monitor.host.release(buffer)
    del part
    assert view is not None
    one.monitor.host.release(buffer)


def test_a_view_in_a_cycle_is_alive_until_it_is_collected_even_in_its_last_words(
    one: Stage,
) -> None:
    host, seen = one.monitor.host, []

    class Holder:
        def __init__(self, buffer: Buffer) -> None:
            self.view, self.me = memoryview(buffer), self

        def __del__(self) -> None:
            with contextlib.suppress(BufferError):
                host.release(buffer)
                seen.append("released")
            seen.append(self.view[1])

    buffer = filled(host)
    gc.disable()
    try:
        Holder(buffer)
        with pytest.raises(BufferError):
            host.release(buffer)
    finally:
        gc.enable()
    gc.collect()
    assert seen == [1]
    host.release(buffer)


def test_what_is_shared_may_be_viewed_all_the_time(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    buffer = filled(host)
    array, words = buffer.array(), buffer.array("uint64")
    host.share(a.machine, buffer, writable=True)
    (there,) = spans_of(a.one())
    assert buffer.hold is Hold.SHARED
    array[:8] = 7
    assert a.read(there.gpa) == [0x0707070707070707]
    a.write(there.gpa, 42)
    assert words[0] == 42
    host.reclaim(buffer)
    assert (words[0], bytes(buffer)[:8]) == (42, (42).to_bytes(8, "little"))
    del array, words
    host.release(buffer)


def test_after_pages_went_and_came_back_there_are_views_again(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    for size in (PAGE_SIZE, 64 << 10):
        buffer = filled(host, size)
        host.lend(a.machine, buffer)
        (loan,) = spans_of(a.one())
        for use in (memoryview, Buffer.view, Buffer.array, np.asarray):
            with pytest.raises(NOTHING):
                use(buffer)
        a.write(loan.gpa, 99)
        assert a.give_back(abi.PEER_HOST, loan, length=size) is Status.OK
        assert memoryview(buffer)[0] == 99  # before the message has been received, too
        received = host.receive()
        assert received is not None
        host.lend(a.machine, buffer)
        a.one()
        host.reclaim(buffer)
        array = np.frombuffer(buffer, np.uint64)
        assert array[0] == 99
        del array
        host.release(buffer)


# ---- Borrowed ----


def test_what_may_only_be_read_is_never_given_out_to_be_written(stage: Stage) -> None:
    a, host = stage.puppets[0], stage.monitor.host
    for pages in (1, 16):
        buffer = of_puppet(a, Operation.SHARE, pages, flags=abi.Flags.READONLY)
        assert buffer.hold is Hold.VIEWED
        view, array = memoryview(buffer), buffer.array()
        assert (view.readonly, buffer.view().readonly, view[0]) == (True, True, 0x41)
        for read_only in (array, np.asarray(buffer), np.frombuffer(buffer, np.uint8)):
            assert not read_only.flags.writeable
            with pytest.raises(ValueError, match="WRITEABLE"):
                read_only.setflags(write=True)
        with pytest.raises(TypeError, match="modify read-only memory"):
            view[0] = 1
        with pytest.raises((TypeError, AccessError, BufferError)):
            io.BytesIO(b"x").readinto(buffer)
        with pytest.raises(BufferError):
            host.give_back(buffer)
        with pytest.raises((GuestError, BufferError)):
            host.release(buffer)
        del view, array, read_only
        host.give_back(buffer)


@pytest.mark.parametrize("pages", [2, 16])
@pytest.mark.parametrize("operation", [Operation.LEND, Operation.SHARE])
def test_an_owner_takes_its_pages_back_from_under_views(
    stage: Stage, operation: Operation, pages: int
) -> None:
    """They are memory of nobody's then, and the owner's pages what they were."""
    a, host = stage.puppets[0], stage.monitor.host
    (own,) = a.alloc(pages)
    a.write(own.gpa, 0x41, pages)
    assert a.do(operation, abi.PEER_HOST, own, length=pages * PAGE_SIZE) is Status.OK
    received = host.receive()
    assert received is not None
    (buffer,) = received.buffers
    array, view = buffer.array("uint64"), memoryview(buffer)
    stride = PAGE_SIZE // 8
    assert array[::stride].tolist() == list(range(0x41, 0x41 + pages))
    assert a.reclaim(own) is Status.OK
    assert buffer.hold is Hold.REVOKED
    assert not array.any()
    array[:] = 0x666
    assert (view[0], view[1]) == (0x66, 0x06)
    assert a.read(own.gpa, pages) == list(range(0x41, 0x41 + pages))
    stage.monitor.audit(mappings=True)
    for use in (memoryview, Buffer.view, np.asarray):
        with pytest.raises(NOTHING):
            use(buffer)
    with pytest.raises(BufferError):
        host.release(buffer)
    del array, view
    host.release(buffer)
    fresh = host.alloc(pages * PAGE_SIZE)
    assert not fresh.array().any()
    host.release(fresh)


def test_views_outlive_the_death_of_the_owner(stage: Stage) -> None:
    puppet = Puppet(stage.monitor, "owner")
    puppet.boot()
    buffer = of_puppet(puppet, Operation.LEND)
    array = buffer.array()
    stage.monitor.kill(puppet.machine)
    stage.monitor.remove(puppet.machine)
    array[1] = 5
    assert buffer.read(0, 2) == bytes([0x41, 5])
    with pytest.raises(BufferError):
        host_return = stage.monitor.host.give_back
        host_return(buffer)
    del array
    stage.monitor.host.give_back(buffer)


# ---- Threads ----


def test_no_thread_sees_a_page_that_another_gives_away(one: Stage) -> None:
    """What is read is the buffer's own, or nothing was given out; and what was refused is there."""
    a, host = one.puppets[0], one.monitor.host
    buffer, stop = filled(host, PAGE_SIZE), threading.Event()
    wrong: list[object] = []
    counts = {"seen": 0, "refused": 0, "lent": 0}

    def look() -> None:
        while not stop.is_set():
            try:
                view = memoryview(buffer)
            except NOTHING:
                continue
            if view[1] != 1:
                wrong.append(view[1])
            counts["seen"] += 1
            del view
            time.sleep(0.0001)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3000):
            try:
                with host.lend(a.machine, buffer):
                    counts["lent"] += 1
            except BufferError:
                counts["refused"] += 1
                assert buffer.hold is Hold.OWNED
            if counts["lent"] == 100:  # its queue takes no more
                break
            time.sleep(0.0001)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert min(counts["seen"], counts["lent"]) > 10, counts
    a.inbox()
    host.release(buffer)


# ---- Lent for the time of a block ----


def test_what_is_lent_in_a_block_is_back_at_its_end(stage: Stage) -> None:
    a, b, _ = stage.puppets
    host = stage.monitor.host
    first, second = filled(host), filled(host, 64 << 10)
    with host.lend(a.machine, first, second) as number:
        assert (type(int(number)), first.hold, second.hold) == (int, Hold.LENT, Hold.LENT)
        message = a.one()
        assert message.message == number
        assert a.give_back(abi.PEER_HOST, spans_of(message)[0], length=len(first)) is Status.OK
        assert (first.hold, second.hold) == (Hold.OWNED, Hold.LENT)
    assert (first.hold, second.hold) == (Hold.OWNED, Hold.OWNED)
    assert host.receive() is not None
    with pytest.raises(KeyError), host.lend(a.machine, first):
        raise KeyError
    with host.share(a.machine, first), host.share(b.machine, first):
        assert first.hold is Hold.SHARED
    assert (first.hold, second.hold) == (Hold.OWNED, Hold.OWNED)
    refused = stage.monitor.host.peer.refused
    with host.lend(a.machine, first):  # in part
        (loan,) = spans_of(a.inbox()[-1])
        assert a.give_back(abi.PEER_HOST, Span(loan.gpa, 1), length=PAGE_SIZE) is Status.OK
    assert (first.hold, bytes(first)) == (Hold.OWNED, bytes(range(256)) * (len(first) // 256))
    assert host.receive() is not None
    with host.lend(a.machine, first):
        host.reclaim(first)
        host.release(first)
    assert stage.monitor.host.peer.refused == refused
    host.release(second)
    a.inbox()


# ---- Whatever is done ----

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["view", "drop", "lend", "reclaim", "share", "send", "exchange", "write", "return"]
        ),
        st.integers(0, 2),
        st.sampled_from(sorted(VIEWS)),
    ),
    max_size=16,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_whatever_is_done_views_are_of_what_is_the_hosts(
    one: Stage, steps: list[tuple[str, int, str]]
) -> None:
    """Operations are refused if, and only if, a view is alive or the protocol says no."""
    a, host = one.puppets[0], one.monitor.host
    buffers = [filled(host, PAGE_SIZE) for _ in range(3)]
    gone: set[int] = set()
    views: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    contents = [bytes(buffer) for buffer in buffers]
    for what, index, kind in steps:
        buffer, alive = buffers[index], bool(views[index])
        if index in gone:
            with pytest.raises(NOTHING):
                VIEWS[kind](buffer)
            continue
        hold = buffer.hold
        if what == "view":
            if hold is Hold.LENT:
                with pytest.raises(NOTHING):
                    VIEWS[kind](buffer)
            else:
                views[index].append(VIEWS[kind](buffer))
        elif what == "drop":
            views[index].clear()
        elif what == "write" and hold is not Hold.LENT:
            buffer.write(b"%d" % len(steps), 9)
            contents[index] = bytes(buffer)
        elif what == "return" and hold in (Hold.LENT, Hold.SHARED):
            for message in a.inbox():
                for span in spans_of(message):
                    a.give_back(abi.PEER_HOST, span, length=PAGE_SIZE)
            while host.receive():
                pass
        elif what in ("lend", "send", "exchange"):
            if alive:
                with pytest.raises(BufferError):
                    getattr(host, what)(a.machine, buffer)
            elif hold is not Hold.OWNED:
                with pytest.raises(GuestError):
                    getattr(host, what)(a.machine, buffer)
            else:
                getattr(host, what)(a.machine, buffer)
                if what == "send":
                    gone.add(index)
                elif what == "exchange":
                    contents[index] = bytes(PAGE_SIZE)
        elif what in ("share", "reclaim"):
            with contextlib.suppress(GuestError):
                host.share(a.machine, buffer) if what == "share" else host.reclaim(buffer)
        for each, content in zip(buffers, contents, strict=True):
            if buffers.index(each) not in gone and each.hold is not Hold.LENT:
                assert bytes(each) == content
    views.clear()
    for index, buffer in enumerate(buffers):
        if index not in gone:
            with contextlib.suppress(GuestError):
                host.reclaim(buffer)
            host.release(buffer)
    a.inbox()
    a.give_up(Operation.RELEASE, {Hold.OWNED, Hold.REVOKED})
    while host.receive():
        pass

"""The ways between two processes: they carry bytes, and leave nothing."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmm.bench import elsewhere, ends
from vmm.bench.elsewhere import Channel, Elsewhere, Pipe, Shared, Socket
from vmm.bench.plan import Case, Unavailable

KINDS = (Pipe, Socket, Shared)


@pytest.fixture(params=KINDS)
def channel(request: pytest.FixtureRequest) -> Iterator[Channel]:
    made = request.param()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("size", [1, 64, 4096, 4097, (1 << 20) + 3])
def test_what_comes_back_is_what_was_sent(
    channel: Channel, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    back: list[bytes] = []
    there_and_back = channel._there_and_back

    def kept(messages: list[bytes], touched: bool) -> list[ends.Data]:
        received = there_and_back(messages, touched)
        back.extend(map(bytes, received))
        assert [bytes(data) for data in received] == messages
        return received

    monkeypatch.setattr(channel, "_there_and_back", kept)
    times = channel.measure(size, 3, touched=True)
    assert len(times) == 3
    assert all(0 < ns < 10**9 for ns in times)
    assert {len(data) for data in back} == {size}


def test_a_batch_comes_back_in_order_and_each_message_in_its_own_memory(channel: Channel) -> None:
    for size in (64, 4096):
        assert len(channel.measure(size, 2, touched=False, batch=64)) == 2
    assert len(channel.measure(100, 2, touched=False)) == 2  # and single ones after that


def test_bytes_that_change_on_the_way_are_no_measurement(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_and_back = channel._there_and_back
    monkeypatch.setattr(
        channel,
        "_there_and_back",
        lambda messages, touched: [bytes(64) for _ in there_and_back(messages, touched)],
    )
    with pytest.raises(Unavailable, match="what came back is not what was sent"):
        channel.measure(64, 2, touched=False)


def test_a_rate_is_measured_several_times_on_one_processor_and_on_two(channel: Channel) -> None:
    allowed = os.sched_getaffinity(0)
    for processors in (1, 2):
        rates = channel.rate(0.05, processors=processors)
        assert all(rate > 100 for rate in rates)
        assert rates
    assert os.sched_getaffinity(0) == allowed


def test_a_child_that_dies_is_no_measurement_and_nobody_waits_for_it(channel: Channel) -> None:
    channel.measure(64, 2, touched=False)
    assert channel._child.pid is not None
    timer = threading.Timer(0.2, os.kill, (channel._child.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(Unavailable, match=r"its process has ended \(-9\)"):
        channel.measure(64, 10_000_000, touched=False)
    timer.join()
    with pytest.raises(Unavailable, match="its process has ended"):
        channel.measure(64, 2, touched=False)


def test_the_child_has_no_descriptors_but_its_own_and_no_say_on_ctrl_c(channel: Channel) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        other = type(channel)()
    finally:
        os.close(writer)
    try:
        other.measure(64, 2, touched=False)
        assert os.read(reader, 1) == b""  # nobody else has the other end
        assert other._child.pid is not None
        os.kill(other._child.pid, signal.SIGINT)
        other.measure(64, 2, touched=False)
    finally:
        os.close(reader)
        other.close()


def test_a_channel_leaves_nothing(channel: Channel) -> None:
    channel.close()  # by then what multiprocessing starts once has been started
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    other = type(channel)()
    other.measure(4096, 2, touched=True)
    pid = other._child.pid
    other.close()
    other.close()
    del other
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()
    assert set(os.listdir("/dev/shm")) <= before  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_shared_memory_that_does_not_fit_is_unavailable_and_not_a_bus_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Shared()
    try:
        monkeypatch.setattr(
            elsewhere.os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 9, 4, 2, *[0] * 5))
        )
        with pytest.raises(Unavailable, match="/dev/shm has room for 8192 B only"):
            made.measure(1 << 20, 2, touched=False)
    finally:
        made.close()


def test_every_row_between_processes_has_its_numbers_in_its_unit() -> None:
    with Elsewhere() as ways, ExitStack() as stack:
        for name, size in (
            *(("inline_64B", 64), ("page", 4096), ("pingpong_page", 4096)),
            *(("batch64_scattered", 4096), ("extent_touched", 8192), ("rate_1_worker", 64)),
        ):
            columns = ways.columns(Case(name, size, 16, 0.01), stack)
            assert list(columns) == ["pipe", "socket", "shared_memory"]
            for column in columns.values():
                numbers = list(column())
                assert numbers
                assert all(number > 0 for number in numbers)
        for name in ("spawn_cold", "lend_return", "share", "close", "alive_10"):
            assert ways.columns(Case(name, 0, 16, 0.0), stack) == {}


def test_a_way_that_has_failed_is_opened_anew() -> None:
    with Elsewhere() as ways, ExitStack() as stack:
        column = ways.columns(Case("page", 4096, 2, 0.0), stack)["pipe"]
        column()
        child = ways._channels["pipe"]._child
        child.kill()
        child.join()
        with pytest.raises(Unavailable):
            column()
        assert len(list(column())) == 2

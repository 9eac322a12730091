"""Sandboxed functions as tasks, under load: workers are killed, calls fail, memory is short."""

from __future__ import annotations

import os
import random
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

import dask  # noqa: E402
import dask.array as da  # noqa: E402
import psutil  # noqa: E402
from dask.distributed import Client, wait  # noqa: E402
from kvm.dask_cluster import Cluster, machines_of, until  # noqa: E402

from vmm import CallCrash, ClosedError  # noqa: E402
from vmm.dask import DaskSandbox, here, running, sandbox  # noqa: E402

TASKS = Path(__file__).parents[1] / "sandboxed" / "tasks.c"
BLOCK = (2048, 4096)  # 8 MiB
LIMIT = 512 << 20  # bytes of a worker that has little memory
HELD = 10  # results, which are much less than it spills by itself

pytestmark = pytest.mark.not_in_lanes("no Dask there, and no compiler")


@pytest.fixture
def no_leaks() -> None:
    """A client's connections and threads come and go: processes are looked at by the tests."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of two workers with one thread each."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        for name in ("one", "two"):
            made.worker(name, threads=1)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(scheduler_file=str(cluster.folder / "scheduler.json")) as made:
        made.wait_for_workers(2)
        yield made


@pytest.fixture(scope="module")
def lib(client: Client) -> Iterator[DaskSandbox]:
    with sandbox(TASKS, pool="512M") as made:
        yield made


def address(client: Client, name: str) -> str:
    """Return that of the worker of that name."""
    workers = client.scheduler_info(-1)["workers"]
    (found,) = (one for one, about in workers.items() if about["name"] == name)
    return str(found)


def block(number: int) -> Any:
    return (np.arange(8 << 20, dtype=np.uint32) * (2 * number + 1) >> 7).astype("u1").reshape(BLOCK)


def checksum(values: Any) -> int:
    return zlib.crc32(values)


def test_a_large_array_is_right_though_a_worker_is_killed(
    client: Client, cluster: Cluster, lib: DaskSandbox
) -> None:
    cluster.worker("victim", threads=1)
    client.wait_for_workers(3)
    made = [da.from_delayed(dask.delayed(block)(n), BLOCK, np.uint8) for n in range(32)]
    result = da.concatenate(made).map_blocks(lib.scale, 3, dtype=np.uint8).persist()
    victim = address(client, "victim")
    until(lambda: client.has_what([victim])[victim], "it gets nothing to do")
    assert machines_of(cluster.pid("victim"))
    assert cluster.end("victim", signal.SIGKILL) == -signal.SIGKILL
    sums = dask.compute(*[dask.delayed(checksum)(one) for one in result.to_delayed().ravel()])
    assert list(sums) == [zlib.crc32(block(n) * np.uint8(3)) for n in range(32)]


def test_many_calls_that_fail_leave_nothing_behind(client: Client, lib: DaskSandbox) -> None:
    def left() -> tuple[int, int, int]:
        """How many pages are in use, tickets under way, and descriptors."""
        (library,) = here._libraries.values()
        library.tidy()
        states = library.pool.monitor.audit()
        total = library.pool.monitor.host._exchange.ledger.pool.total
        return total - states["free"], len(running._tickets), len(machines_of(os.getpid()))

    chance = random.Random(7)
    large = client.scatter(np.ones((512, 1024), np.uint8), broadcast=True)
    for _ in range(2):
        bad = {number for number in range(150) if chance.random() < 0.1}
        calls = [
            client.submit(lib.crash, bytearray(1), n=1, pure=False)
            if number in bad
            else client.submit(lib.scale, large, number % 5, pure=False)
            for number in range(150)
        ]
        wait(calls)
        for number, one in enumerate(calls):
            if number in bad:
                assert isinstance(one.exception(), CallCrash)
            else:
                assert one.result()[7, 7] == number % 5
        del calls, one
    del large
    until(lambda: all(found[0] == 0 for found in client.run(left).values()), "pages are kept")
    # /dev/kvm, the pool, the image, and of one machine its VM and vCPU.
    assert all(tickets == 0 and held <= 5 for _, tickets, held in client.run(left).values())


def test_a_worker_that_waits_for_memory_gets_that_of_results_which_it_spills(
    client: Client, cluster: Cluster, lib: DaskSandbox
) -> None:
    cluster.worker("small", "--memory-limit", str(LIMIT), threads=1)
    client.wait_for_workers(3)
    small = [address(client, "small")]

    def fill(dask_worker: Any) -> None:
        used = psutil.Process().memory_info().rss
        dask_worker.other = np.ones(int(LIMIT * 0.85) - used, np.uint8)

    try:
        made = client.map(block, range(HELD), workers=small)
        results = client.map(lib.scale, made, [3] * HELD, workers=small)
        wait(results)
        del made
        until(lambda: len(client.has_what(small)[small[0]]) == HELD, "others are left")
        client.run(fill, workers=small)
        until(lambda: "Pausing worker" in cluster.said("small"), "it has room")
        until(lambda: "Resuming worker" in cluster.said("small"), "it waits for ever")
        sums = client.map(checksum, results, workers=small)
        expected = [zlib.crc32(block(n) * np.uint8(3)) for n in range(HELD)]
        assert client.gather(sums) == expected
    finally:
        cluster.end("small")


def test_a_client_without_a_scheduler_is_said_to_have_none(
    client: Client, cluster: Cluster, lib: DaskSandbox
) -> None:
    with Client(scheduler_file=str(cluster.folder / "scheduler.json"), set_as_default=False) as old:
        pass
    for use in lib.install, lib.uninstall:
        with pytest.raises(ClosedError, match="the client has no scheduler any more"):
            use(old)

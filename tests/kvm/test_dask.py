"""Sandboxed functions as tasks of a cluster: a scheduler, and two workers, in processes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

import dask  # noqa: E402
import dask.array as da  # noqa: E402
from dask.distributed import Client, get_worker, wait  # noqa: E402
from kvm.dask_cluster import Cluster, machines_of, until  # noqa: E402

from vmm import CallCrash, ConfigError, HostError  # noqa: E402
from vmm.dask import DaskSandbox, here, sandbox  # noqa: E402

TASKS = Path(__file__).parents[1] / "sandboxed" / "tasks.c"
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
WORKERS = ("one", "two")

pytestmark = pytest.mark.not_in_lanes("no Dask there, and no compiler")


@pytest.fixture
def no_leaks() -> None:
    """A client's connections and threads come and go: it is looked at when all is over."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of two workers. When it ends all have ended well, and nothing is left here."""
    before = machines_of(os.getpid())
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        for name in WORKERS:
            made.worker(name)
        yield made
        assert [made.end(name) for name in WORKERS] == [0, 0]
    finally:
        made.close()
    assert machines_of(os.getpid()) == before


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(scheduler_file=str(cluster.folder / "scheduler.json")) as made:
        made.wait_for_workers(2)
        yield made


@pytest.fixture(scope="module")
def lib(client: Client) -> Iterator[DaskSandbox]:
    with sandbox(TASKS, pool="64M") as made:
        yield made
    assert not here._libraries


def seen(client: Client) -> list[Any]:
    """Return how the scheduler sees each task that is more than another one's name."""

    def look(dask_scheduler: Any) -> Any:
        tasks = [ts for ts in dask_scheduler.tasks.values() if "Alias" not in str(ts.run_spec)]
        return [(ts.annotations, ts.resource_restrictions) for ts in tasks]

    found: list[Any] = client.run_on_scheduler(look)
    return found


def executing(client: Client) -> int:
    return sum(client.run(lambda dask_worker: len(dask_worker.state.executing)).values())


# ---- how it fits ----


def test_each_block_is_a_call_in_a_machine_of_a_worker(client: Client, lib: DaskSandbox) -> None:
    images = da.from_array(PIXELS, chunks=4)
    result = images.map_blocks(lib.scale, 2, dtype=images.dtype)
    assert (result.compute() == PIXELS * 2).all()
    assert lib._origin.library()._pool is None  # not here


def test_tasks_are_sent_to_machines_without_the_user_saying_so(
    client: Client, lib: DaskSandbox
) -> None:
    until(lambda: not seen(client), "tasks of others are left")
    wanted = {"executor": "pageferry"}, lib.resources
    single = client.submit(lib.scale, PIXELS, 3)
    assert (single.result() == PIXELS * 3).all()
    assert seen(client) == [wanted]
    del single
    until(lambda: not seen(client), "it is left")
    blocks = da.from_array(PIXELS, chunks=4).map_blocks(lib.scale, 5, dtype="u1").persist()
    wait(blocks)
    assert seen(client).count(wanted) == 4
    del blocks
    until(lambda: not seen(client), "they are left")
    plain = client.submit(sum, [1, 2])
    assert plain.result() == 3
    assert lib.resources not in seen(client)[0]


def test_futures_and_delayed_call_it(client: Client, lib: DaskSandbox) -> None:
    futures = client.map(lib.scale, [PIXELS, PIXELS + 1], by=2)
    assert [one.sum() for one in client.gather(futures)] == [
        (PIXELS * 2).sum(),
        (PIXELS * 2 + 2).sum(),
    ]
    assert (dask.delayed(lib.scale)(PIXELS, 2).compute() == PIXELS * 2).all()
    assert client.submit(lib.mean, futures[0], 64).result() == (PIXELS * 2).mean()


def test_a_python_function_uses_the_workers_machines(client: Client, lib: DaskSandbox) -> None:
    def brightness(block: Any) -> tuple[float, str, int]:
        mean = lib.mean(lib.scale(block, 2), block.size)
        return mean, threading.current_thread().name, len(lib.pool._crew.workers)

    mean, _, machines = client.submit(brightness, PIXELS).result()
    assert (mean, machines) == ((PIXELS * 2).mean(), 2)
    with dask.annotate(executor="pageferry", resources=lib.resources):
        _, thread, _ = client.submit(brightness, PIXELS, pure=False).result()
    assert thread.startswith("pageferry-task")


def test_the_program_comes_to_a_worker_once(client: Client, lib: DaskSandbox) -> None:
    small = client.map(lib.scale, [PIXELS] * 50, range(50))
    client.gather(small)
    pools = client.run(lambda: [id(library._pool) for library in here._libraries.values()])
    assert [len(found) for found in pools.values()] == [1, 1]
    with sandbox(TASKS, pool="64M") as again:  # the same
        assert again.scale == lib.scale
        assert client.run(lambda: [id(one._pool) for one in here._libraries.values()]) == pools


def test_what_others_may_need_is_not_written_to(client: Client, lib: DaskSandbox) -> None:
    large = np.ones((512, 1024), np.uint8)
    shared = client.submit(lib.scale, large, 2)  # whose memory it is that machines share
    first, second = client.submit(lib.scale, shared, 2), client.submit(lib.scale, shared, 3)
    assert (second.result() == 6).all()
    assert (first.result() == 4).all()
    there = client.who_has([shared])[shared.key]
    with pytest.raises(CallCrash, match="write"):
        client.submit(lib.overwrite, shared, workers=there).result()
    assert (shared.result() == 2).all()


@pytest.mark.parametrize("mebibytes", [1, 24])
def test_what_comes_from_another_worker_lands_where_machines_see_it(
    client: Client, mebibytes: int
) -> None:
    first, second = client.scheduler_info()["workers"]
    with sandbox(TASKS, pool="256M", seed=mebibytes) as lib:

        def added(block: Any) -> tuple[Any, ...]:
            stats = lib.pool.stats
            before = stats.copied_bytes, stats.shared_bytes
            total = lib.add(block)
            after = stats.copied_bytes, stats.shared_bytes
            seen = tuple(np.subtract(after, before))
            return total, seen, block.flags.aligned

        made = client.submit(np.ones, mebibytes << 17, workers=[first], pure=False)
        found = client.submit(added, made, workers=[second], pure=False).result()
        assert found == (mebibytes << 17, (0, mebibytes << 20), True)


def test_memory_of_results_that_are_gone_is_given_back_without_a_call(
    client: Client, lib: DaskSandbox
) -> None:
    def room(digest: str) -> int:
        host = here._libraries[digest].pool.monitor.host
        return host._exchange.ledger.shares.available(host.peer.number)

    def rooms() -> int:
        return sum(client.run(room, lib._origin.digest).values())

    large = client.submit(np.ones, (512, 1024), np.uint8)
    until(lambda: large.done(), "it is not made")
    before = rooms()
    results = client.map(lib.scale, [large] * 4, range(4))
    wait(results)
    assert rooms() <= before - 4 * 128  # pages
    del results
    until(lambda: rooms() >= before, "it is not given back")


# ---- what goes wrong ----


def test_a_crash_is_the_tasks_and_costs_no_worker(client: Client, lib: DaskSandbox) -> None:
    before = client.run(os.getpid)
    with pytest.raises(CallCrash) as error:
        client.submit(lib.crash, np.ones(3, np.uint8)).result()
    assert error.value.function == "crash"
    assert error.value.fault is not None
    assert error.value.fault.place.line == 51
    assert error.value.fault.printed[-1] == "about to crash"
    assert client.run(os.getpid) == before


def test_a_crash_is_tried_again_as_often_as_dask_is_told(client: Client, lib: DaskSandbox) -> None:
    def at_second_try(block: Any) -> Any:
        worker: Any = get_worker()
        if not getattr(worker, "tried", False):
            worker.tried = True
            lib.crash(block)
        return lib.scale(block, 2)

    one = client.submit(at_second_try, PIXELS, retries=2)  # each worker fails once
    assert (one.result() == PIXELS * 2).all()


def test_a_task_that_is_cancelled_stops_its_machine(client: Client, lib: DaskSandbox) -> None:
    hangs = [client.submit(lib.hang, n) for n in range(4)]  # all machines that there are
    until(lambda: executing(client) == 4, "they do not run")
    client.cancel(hangs)
    after = client.map(lib.scale, [PIXELS] * 4, range(4))
    assert [one.sum() for one in client.gather(after)] == [(PIXELS * n).sum() for n in range(4)]
    until(lambda: executing(client) == 0, "they still run")


def test_a_call_that_begins_after_its_task_was_cancelled_is_stopped(
    client: Client, lib: DaskSandbox
) -> None:
    def late() -> None:
        worker: Any = get_worker()
        task = worker.state.tasks[worker.get_current_task()]
        while task.state == "executing":
            time.sleep(0.01)
        lib.hang(6)

    begun = client.submit(late)
    until(lambda: executing(client) == 1, "it does not run")
    begun.cancel()
    until(lambda: executing(client) == 0, "it still runs")


def test_a_client_that_is_gone_stops_its_tasks(
    client: Client, cluster: Cluster, lib: DaskSandbox
) -> None:
    file = str(cluster.folder / "scheduler.json")
    with Client(scheduler_file=file, set_as_default=False) as other:
        hang = other.submit(lib.hang, 5)
        until(lambda: executing(client) == 1, "it does not run")
    until(lambda: executing(client) == 0, "it still runs")
    assert hang.status in ("cancelled", "pending", "lost")


def test_without_machines_anywhere_the_reason_is_raised(client: Client) -> None:
    with sandbox(TASKS, device="/dev/no-kvm") as lib, pytest.raises(HostError, match="/dev/no-kvm"):
        client.submit(lib.count).result()
    with sandbox(TASKS, needs=["avx512f"]) as lib, pytest.raises(HostError, match="avx512f"):
        client.submit(lib.count).result()
    with sandbox(TASKS, memory="4K") as lib, pytest.raises(ConfigError, match="memory of 4K"):
        client.submit(lib.count).result()


def test_tasks_go_to_workers_that_can_run_them(client: Client, cluster: Cluster) -> None:
    (cluster.folder / "one" / "kvm").symlink_to("/dev/kvm")  # and not for the other
    with sandbox(TASKS, device="kvm", pool="64M") as lib:
        several = client.map(lib.mean, [bytes([n]) for n in range(6)], [1] * 6)
        assert client.gather(several) == [0, 1, 2, 3, 4, 5]
        where = {worker for one in client.who_has(several).values() for worker in one}
        assert len(where) == 1
        name = client.scheduler_info()["workers"][where.pop()]["name"]
        assert name == "one"
    assert "the sandbox tasks cannot be run here: " in cluster.said("two")
    assert "machines can be run here" in cluster.said("two")


# ---- coming and going ----


def test_a_client_that_comes_later_is_told_of_it(client: Client, cluster: Cluster) -> None:
    async def ask(lib: DaskSandbox) -> Any:
        file = str(cluster.folder / "scheduler.json")
        async with Client(scheduler_file=file, asynchronous=True, set_as_default=False) as other:
            installed = lib.install(other)
            assert installed is not None
            await installed
            return await other.submit(lib.count)

    with sandbox(TASKS, seed=7, pool="64M") as lib:
        assert asyncio.run(ask(lib)) == 1


def test_a_worker_that_comes_later_has_it_and_takes_what_waits(
    client: Client, cluster: Cluster, lib: DaskSandbox
) -> None:
    cluster.worker("three", threads=1)
    client.wait_for_workers(3)
    workers = client.scheduler_info()["workers"]
    (third,) = (address for address, one in workers.items() if one["name"] == "three")
    late = client.submit(lib.scale, PIXELS, 7, workers=[third], pure=False)
    assert (late.result() == PIXELS * 7).all()
    assert machines_of(cluster.pid("three"))
    assert cluster.end("three") == 0
    until(lambda: len(client.scheduler_info()["workers"]) == 2, "it is still there")


def test_a_worker_gives_back_all_when_it_is_uninstalled(client: Client, cluster: Cluster) -> None:
    counts = [len(machines_of(cluster.pid(name))) for name in WORKERS]
    with sandbox(TASKS, seed=8, pool="64M") as lib:
        assert client.submit(lib.count).result() == 1
        assert [len(machines_of(cluster.pid(name))) for name in WORKERS] != counts
        lib.uninstall()
    until(
        lambda: [len(machines_of(cluster.pid(name))) for name in WORKERS] == counts,
        "they hold more than before",
    )

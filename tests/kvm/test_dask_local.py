"""Sandboxed functions as tasks, without a cluster: Dask's own threads and processes."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

import dask  # noqa: E402
import dask.array as da  # noqa: E402
import dask.bag as db  # noqa: E402
from dask.base import tokenize  # noqa: E402

from vmm import (  # noqa: E402
    CallCrash,
    CallTimeout,
    ClosedError,
    ConfigError,
    HostError,
    ResourceError,
)
from vmm.dask import DaskSandbox, here, sandbox  # noqa: E402

TASKS = Path(__file__).parents[1] / "sandboxed" / "tasks.c"
LARGE = (np.arange(1 << 19) % 61).astype(np.uint8).reshape(512, 1024)

pytestmark = pytest.mark.not_in_lanes("no Dask there, and no compiler")

Open = Callable[..., DaskSandbox]


@pytest.fixture(scope="module", autouse=True)
def _what_python_keeps() -> None:
    """Processes of Python's are followed by one that stays."""
    resource_tracker.ensure_running()


@pytest.fixture(autouse=True)
def _threads(no_leaks: None) -> Iterator[None]:
    """Dask's threads end with the test."""
    with ThreadPoolExecutor(2) as threads, dask.config.set(pool=threads):
        yield


@pytest.fixture
def open_sandbox(_threads: None) -> Iterator[Open]:
    """Make sandboxes of tasks.c that are closed when the test ends, and all of whose machines are
    gone then.
    """
    made: list[DaskSandbox] = []

    def make(*sources: Any, **options: Any) -> DaskSandbox:
        made.append(sandbox(*sources or (TASKS,), **{"pool": "64M", "machines": 2, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not here._libraries


@pytest.fixture
def lib(open_sandbox: Open) -> DaskSandbox:
    """One of two machines."""
    return open_sandbox()


@pytest.fixture
def pixels() -> Any:
    """Some that are not the same everywhere."""
    return np.arange(48, dtype=np.uint8).reshape(6, 8)


# ---- what a call means ----


def test_an_array_that_may_be_written_to_comes_back_and_stays_as_it_was(
    lib: DaskSandbox, pixels: Any
) -> None:
    before = pixels.copy()
    assert (lib.scale(pixels, 2) == before * 2).all()
    assert (pixels == before).all()
    pixels.flags.writeable = False
    assert (lib.scale(pixels[:, ::2], 3) == before[:, ::2] * 3).all()


def test_what_is_written_is_never_what_another_call_was_given(lib: DaskSandbox) -> None:
    first = lib.scale(LARGE, 2)  # in memory that calls share
    second = lib.scale(first, 2)
    assert (first == LARGE * 2).all()
    assert (second == LARGE * 4).all()
    shared = lib.pool.stats.shared_bytes
    assert lib.mean(first, first.size) == first.mean()
    assert lib.pool.stats.shared_bytes == shared + first.nbytes  # read where it is
    with pytest.raises(CallCrash, match="write"):
        lib.overwrite(first)
    assert (first == LARGE * 2).all()


def test_what_is_copied_is_counted(lib: DaskSandbox, pixels: Any) -> None:
    lib.scale(LARGE, 2)
    assert lib.pool.stats.copied_bytes == LARGE.nbytes  # into shared memory
    lib.scale(pixels, 2)
    assert lib.pool.stats.copied_bytes == LARGE.nbytes + 2 * pixels.nbytes  # there and back


def test_a_number_comes_back_as_it_is_and_of_several_arrays_all(lib: DaskSandbox) -> None:
    a, b = np.arange(3, dtype=np.int32), np.ones(3, np.int32)
    assert lib.mean(b"\x01\x03", 2) == 2
    first, second = lib.swap(a, b)
    assert (first == b).all()
    assert (second == a).all()
    assert lib.count() == 1


def test_arrays_that_a_function_fills_are_made_for_it(lib: DaskSandbox) -> None:
    made = lib.halves.using(new="out")(np.arange(5, dtype=np.uint8))
    assert made.dtype == np.float32
    assert made.tolist() == [0, 0.5, 1, 1.5, 2]
    given = np.zeros(5, np.float32)
    assert lib.halves(np.arange(5, dtype=np.uint8), given) == 5
    assert lib.halves.using(returns="out")(np.arange(5, dtype=np.uint8), given)[4] == 2
    assert not given.any()


def test_bounds_are_the_shapes_unless_they_are_given(lib: DaskSandbox, pixels: Any) -> None:
    half = lib.scale(pixels, 2, height=3)
    assert (half[:3] == pixels[:3] * 2).all()
    assert (half[3:] == pixels[3:]).all()
    assert lib.mean.using(shapes={"pixels": "count"})(pixels) == pixels.mean()
    assert list(lib.scale.__signature__.parameters)[:4] == ["pixels", "by", "height", "width"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lib: lib.scale(np.zeros(4, np.uint8), 1), "scale: pixels has 1 dimensions, and is"),
        (lambda lib: lib.rgb(np.zeros((2, 4), np.uint8)), "rgb: pixels has 4 where it is to have"),
        (lambda lib: lib.scale(np.zeros((2, 2), np.uint8)), "missing a required argument: 'by'"),
        (lambda lib: lib.scale(np.zeros((2, 2), float), 1), "scale: pixels"),
        (lambda lib: lib.scale(None, 1), "scale: nothing says what height is"),
        (lambda lib: lib.scale("text", 1), "scale: pixels is 'str' and no array, so nothing says"),
        (lambda lib: lib.scale(2.5, 1), "scale: pixels is 'float' and no array, so nothing says"),
        (lambda lib: lib.mean.using(new="pixels"), "nothing says how large pixels is"),
        (lambda lib: lib.mean.using(shapes={"pixel": "count"}), "mean has no parameter 'pixel'"),
        (lambda lib: lib.means, "means"),
        (lambda lib: sandbox(TASKS, memry="1M"), "unexpected keyword argument 'memry'"),
        (lambda lib: sandbox(TASKS, needs="avx2"), "needs is text, not a list"),
    ],
)
def test_what_cannot_be_meant_is_said(
    lib: DaskSandbox, call: Callable[[Any], Any], said: str
) -> None:
    with pytest.raises((ConfigError, AttributeError)) as error:
        call(lib)
    assert said in str(error.value)


def test_a_full_pool_costs_copies_and_no_result(open_sandbox: Open) -> None:
    lib = open_sandbox(pool="4M", machines=1)
    blocks = [np.full((1024, 1024), n, np.uint8) for n in range(6)]
    results = [lib.scale(block, 2) for block in blocks]
    assert lib.pool.stats.copied_bytes > 6 << 20  # out again, while there is not much room
    assert [result[5, 5] for result in results] == [0, 2, 4, 6, 8, 10]


def test_calls_that_find_no_room_beside_others_wait_for_it(open_sandbox: Open) -> None:
    lib = open_sandbox(pool="4M", machines=2)
    blocks = [np.full((3, 1 << 20), n, np.uint8) for n in range(16)]
    with ThreadPoolExecutor(4) as threads:
        means = threads.map(lambda block: lib.mean(block, block.size), blocks)
        assert list(means) == list(range(16))
        tripled = threads.map(lambda block: lib.scale(block, 3)[2, 9], blocks)
        assert list(tripled) == [3 * n for n in range(16)]
    with pytest.raises(ResourceError, match=r"5 MiB .* make the pool larger"):
        lib.mean(np.zeros(5 << 20, np.uint8), 5 << 20)
    assert lib.mean(blocks[3], 9) == 3


def test_a_child_that_is_forked_waits_for_no_call_of_its_parents(open_sandbox: Open) -> None:
    lib = open_sandbox(pool="4M", machines=2)
    with ThreadPoolExecutor(1) as threads:
        hangs = threads.submit(lib.hang.using(timeout=3), 1)
        while not lib._origin.library().room._calls:
            time.sleep(0.01)
        child = os.fork()
        if not child:
            try:
                lib.mean(np.zeros(5 << 20, np.uint8), 5 << 20)
            except ResourceError:
                os._exit(0 if lib.mean(LARGE, 9) == LARGE.ravel()[:9].mean() else 1)
            finally:
                os._exit(2)
        until = time.monotonic() + 30
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
            time.sleep(0.01)
        if not ended[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        with pytest.raises(CallTimeout):
            hangs.result()
    assert lib.mean(LARGE, 9) == LARGE.ravel()[:9].mean()


def test_who_finds_a_sandbox_that_is_on_its_way_does_not_keep_it(
    open_sandbox: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = open_sandbox()
    origin, spec = lib._origin, lib._origin.library().spec
    with monkeypatch.context() as elsewhere:  # another process of this host
        elsewhere.setattr(here, "_libraries", {})
        elsewhere.setattr(here, "_holders", {})
        assert lib.mean(bytes([1, 3]), 2) == 2
        found = here.find(origin.digest, origin.name, origin.path)
        assert here.hold(spec, machines=1) is found
        assert found.machines is None  # it has been called: they are there
        here.release(origin.digest)
        assert not here._libraries
        with pytest.raises(ClosedError):
            _ = found.pool
        found = here.find(origin.digest, origin.name, origin.path)
        assert here.hold(spec, machines=1) is found
        assert found.machines == 1
        here.release(origin.digest)


# ---- in graphs ----


def test_each_block_is_a_call(lib: DaskSandbox, pixels: Any) -> None:
    images = da.from_array(pixels, chunks=(3, 4))
    result = images.map_blocks(lib.scale, 2, dtype=images.dtype)
    assert lib._origin.library()._pool is None  # its type is known without a machine
    assert (result.compute() == pixels * 2).all()
    assert lib.pool.stats.calls == 4
    assert images.map_blocks(lib.scale, by=2).dtype == np.uint8  # it is tried out


def test_delayed_and_bags_call_it(lib: DaskSandbox, pixels: Any) -> None:
    assert (dask.delayed(lib.scale)(pixels, by=2).compute() == pixels * 2).all()
    bag = db.from_sequence([pixels, pixels], npartitions=2).map(lib.scale, 3)
    assert all((one == pixels * 3).all() for one in bag.compute(scheduler="threads"))


def test_a_python_function_that_calls_it_is_a_task(lib: DaskSandbox, pixels: Any) -> None:
    def brightness(block: Any) -> Any:
        return lib.mean(lib.scale(block, 2), block.size)

    assert dask.delayed(brightness)(pixels).compute() == (pixels * 2).mean()


def test_it_pickles_as_less_than_a_page_and_is_the_same_then(lib: DaskSandbox) -> None:
    data = pickle.dumps(lib.scale)
    assert len(data) < 1024
    other = pickle.loads(data)
    assert other == lib.scale
    assert tokenize(other) == tokenize(lib.scale) != tokenize(lib.scale.using(timeout=3))
    assert pickle.loads(pickle.dumps(lib)).mean(b"\x02", 1) == 2


def test_processes_call_it_in_machines_of_theirs(lib: DaskSandbox, pixels: Any) -> None:
    images = da.from_array(pixels, chunks=(6, 8))
    result = images.map_blocks(lib.scale, 2, dtype=images.dtype)
    with dask.config.set(pool=None, num_workers=1, scheduler="processes"):
        assert (result.compute() == pixels * 2).all()
        with pytest.raises(CallCrash, match=r"tasks\.c"):
            dask.delayed(lib.crash)(np.ones(3, np.uint8)).compute()
    assert lib._origin.library()._pool is None


# ---- what goes wrong ----


def test_a_crash_is_the_tasks_and_pickles_with_all_that_is_known(lib: DaskSandbox) -> None:
    with pytest.raises(CallCrash) as error:
        dask.delayed(lib.crash)(np.ones(3, np.uint8)).compute()
    told = pickle.loads(pickle.dumps(error.value))
    assert told.function == "crash"
    assert told.fault.printed[-1] == "about to crash"
    assert (told.fault.place.symbol, told.fault.place.file) == ("crash", "tasks.c")
    assert lib.mean(b"\x01", 1) == 1


def test_a_function_that_takes_too_long_is_stopped(lib: DaskSandbox) -> None:
    with pytest.raises(CallTimeout):
        lib.hang(1, timeout=0.1)
    with pytest.raises(CallTimeout):
        lib.hang.using(timeout=0.1)(1)


def test_a_processor_that_lacks_what_it_was_compiled_for_is_named_before_it_runs(
    open_sandbox: Open,
) -> None:
    lib = open_sandbox(cflags=["-mavx512f"])
    with pytest.raises(HostError, match="tasks was compiled for a processor with avx512f"):
        lib.count()
    assert open_sandbox(cflags=["-mavx512f"], needs=[]).count() == 1


def test_one_that_is_closed_says_so(open_sandbox: Open) -> None:
    lib = open_sandbox()
    count = lib.count
    assert count() == 1
    lib.close()
    with pytest.raises(ConfigError, match="the sandbox tasks is not here: it has been closed"):
        count()
    assert open_sandbox().count() == 1

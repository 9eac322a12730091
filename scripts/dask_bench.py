#!/usr/bin/env python3
"""Measure what a sandboxed function costs as a task of Dask's, beside what people do today.

    scripts/dask_bench.py [ROUNDS]    print the tables of docs/dask.md

Each row's columns take turns, and the best of all rounds counts: other load on the machine makes
times longer, never shorter. Workers are processes with one thread each.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster, wait

from vmm.dask import sandbox
from vmm.guest.compiler import find_compiler

BLOCK = 64 << 20
BLOCKS = 2
TASKS = 1000
SPINS = 8
ROUNDS = 12
SPIN = 100_000_000
FLAGS = ("-O2",)

SOURCE = """
#include <stddef.h>
#include <stdint.h>

void smooth(size_t n, uint8_t v[n])
{
    uint32_t last = 0;
    for (size_t i = 0; i < n; i++)
        v[i] = (uint8_t)(last = (last * 7 + v[i] * 9u) >> 4);
}

uint64_t digest(size_t n, const uint8_t v[n])
{
    uint64_t state = 0;
    for (size_t i = 0; i < n; i++)
        state = state * 6364136223846793005u + v[i];
    return state;
}

uint64_t spin(uint64_t rounds)
{
    uint64_t state = rounds | 1;
    for (uint64_t i = 0; i < rounds; i++)
        state = state * 6364136223846793005u + 1442695040888963407u;
    return state;
}

int next(int number)
{
    return number + 1;
}
"""


# ---- What is compared: each leaves the block that it is given as it is ----


@cache
def native(path: str) -> Any:
    """Return the same functions in this process."""
    library = ctypes.CDLL(path)
    library.smooth.argtypes = library.digest.argtypes = (ctypes.c_size_t, ctypes.c_void_p)
    library.smooth.restype, library.digest.restype = None, ctypes.c_uint64
    library.spin.argtypes, library.spin.restype = (ctypes.c_uint64,), ctypes.c_uint64
    return library


def smooth(path: str, block: Any) -> Any:
    """Call it by ctypes, on a copy."""
    made = block.copy()
    native(path).smooth(made.nbytes, made.ctypes.data)
    return made


def digest(path: str, block: Any) -> Any:
    """Call it by ctypes."""
    return native(path).digest(block.nbytes, block.ctypes.data)


def spin(path: str, count: int) -> Any:
    """Call it by ctypes."""
    return native(path).spin(count)


@cache
def child() -> ProcessPoolExecutor:
    """Return this worker's own process, which the function is to crash instead of the worker."""
    return ProcessPoolExecutor(1, get_context("spawn"))


def elsewhere(function: Callable[..., Any], path: str, block: Any) -> Any:
    """Call one in another process."""
    return child().submit(function, path, block).result()


def plain(number: int) -> int:
    """Do what next does."""
    return number + 1


# ---- Measuring ----

Column = Callable[[], Any]


def best(columns: Mapping[str, Column], rounds: int) -> dict[str, float]:
    """Return the least time of each, in seconds; they take turns. The first round is no more than
    warming up.
    """
    found: dict[str, list[float]] = {name: [] for name in columns}
    for _ in range(rounds + 1):
        for name, run in columns.items():
            start = time.perf_counter()
            done = run()
            found[name].append(time.perf_counter() - start)
            del done
            time.sleep(0.2)  # what it held is given back
    return {name: min(times[1:]) for name, times in found.items()}


def blocks(rounds: int, path: str, lib: Any) -> None:
    """Measure map_blocks over large blocks, on one worker."""
    # Blocks of da.ones are one item each, seen many times: ctypes would read beyond it.
    images = da.random.default_rng(1).integers(
        256, size=BLOCK * BLOCKS, chunks=BLOCK, dtype=np.uint8
    )
    images = images.persist()
    wait(images)

    def over(function: Any) -> Column:
        def run() -> Any:
            name = f"bench-{time.time_ns()}"
            result = images.map_blocks(function, dtype=np.uint8, name=name)
            wait(result := result.persist(optimize_graph=False))
            return result

        return run

    def each(function: Any) -> Column:
        parts = images.to_delayed().ravel()

        def run() -> Any:
            tasks = [dask.delayed(function, pure=False)(part) for part in parts]
            wait(futures := dask.persist(*tasks, optimize_graph=False))
            return futures

        return run

    print("| a block of 64 MiB, ms | ctypes | another process | sandboxed | of ctypes |")
    print("|---|---|---|---|---|")
    for what, columns in {
        "changed: `void smooth(size_t n, uint8_t v[n])`": (
            over(partial(smooth, path)),
            over(partial(elsewhere, smooth, path)),
            over(lib.smooth),
        ),
        "read: `uint64_t digest(size_t n, const uint8_t v[n])`": (
            each(partial(digest, path)),
            each(partial(elsewhere, digest, path)),
            each(lib.digest),
        ),
    }.items():
        times = best(dict(zip(("ctypes", "process", "ours"), columns, strict=True)), rounds)
        ms = [f"{times[name] / BLOCKS * 1e3:.0f}" for name in ("ctypes", "process", "ours")]
        print(
            f"| {what} | {' | '.join(ms)} | {times['ours'] / times['ctypes']:.2f} x |", flush=True
        )


def small(rounds: int, client: Client, lib: Any) -> None:
    """Measure very many small tasks, on one worker.

    Tasks that take a resource are not queued on the scheduler, so they are compared with such.
    """

    def over(function: Any, **options: Any) -> Column:
        numbers = range(TASKS)
        return lambda: client.gather(client.map(function, numbers, pure=False, **options))

    alike = {"resources": lib.resources}
    columns = {"plain": over(plain), "alike": over(plain, **alike), "ours": over(lib.next)}
    times = best(columns, rounds)
    each = {name: taken / TASKS * 1e3 for name, taken in times.items()}
    print(f"\n| {TASKS} tasks, ms each | Python | Python, with the resource | sandboxed | more |")
    print("|---|---|---|---|---|")
    shown = [f"{each[name]:.2f}" for name in columns] + [f"{each['ours'] - each['alike']:.2f}"]
    print(f"| `int next(int number)` | {' | '.join(shown)} |", flush=True)


def workers(rounds: int, client: Client, path: str, lib: Any) -> None:
    """Measure what computes on one worker, and on two."""
    addresses = sorted(client.scheduler_info()["workers"])

    def on(function: Any, rounds_each: int, chosen: list[str]) -> Any:
        futures = [
            client.submit(function, rounds_each, workers=[chosen[n % len(chosen)]], pure=False)
            for n in range(SPINS)
        ]
        return wait(futures)

    print(f"\n| {SPINS} calls that compute, s | one worker | two | as fast |\n|---|---|---|---|")
    functions = {"ctypes": partial(spin, path), "sandboxed": lib.spin}
    for rounds_each in (SPIN, 4 * SPIN):
        times = best(
            {
                f"{name} {count}": partial(on, function, rounds_each, addresses[:count])
                for name, function in functions.items()
                for count in (1, 2)
            },
            rounds,
        )
        for name in functions:
            one, two = times[f"{name} 1"], times[f"{name} 2"]
            print(f"| {name} | {one:.2f} | {two:.2f} | {one / two:.2f} x |", flush=True)


def main() -> None:
    """Build the functions, start a cluster of each size, and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)  # workers' processes import it
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors\n")
    # A worker has a process of its own only if it is no daemon.
    dask.config.set({"distributed.worker.daemon": False})
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": ":0"}
    options |= {"memory_limit": 0}
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "bench.c"), Path(folder, "bench.so")
        source.write_text(SOURCE)
        compiler = find_compiler().for_linux
        subprocess.run([*compiler, *FLAGS, "-shared", "-fPIC", "-o", library, source], check=True)
        for count in (1, 2):
            with (
                LocalCluster(n_workers=count, **options) as cluster,
                Client(cluster) as client,
                sandbox(source, cflags=FLAGS, machines=1) as lib,
            ):
                if count == 1:
                    blocks(rounds, str(library), lib)
                    small(rounds, client, lib)
                else:
                    workers(rounds, client, str(library), lib)
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    import dask_bench  # so that other processes find the functions

    dask_bench.main()

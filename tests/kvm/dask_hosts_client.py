"""A client on one host of a cluster of two: it reads scenes' names, and prints JSON, by lines.

Beside it there is tasks.c. The workers are "one", on this host, and "two", on the other.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import dask
import numpy as np
from dask.distributed import Client, get_worker, wait
from kvm.dask_cluster import until
from kvm.two_hosts import CABLE

from vmm import CallCrash
from vmm.dask import DaskSandbox, sandbox

SIDE = 1024  # of a block, which has a MiB
ALL = range(12)


def block(number: int) -> Any:
    values = np.arange(SIDE * SIDE, dtype=np.uint32) * (2 * number + 1) >> 7
    return values.astype(np.uint8).reshape(SIDE, SIDE)


def addresses(client: Client) -> dict[str, str]:
    """Return the workers' addresses by their names."""
    workers = client.scheduler_info()["workers"]
    return {about["name"]: address for address, about in workers.items()}


def holders(client: Client, futures: list[Any]) -> list[str]:
    """Return the addresses of the workers that have what came out."""
    return sorted({one for found in client.who_has(futures).values() for one in found})


def received() -> int:
    """Return how many bytes have come to this host by cable."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == CABLE:
            return int(numbers.split()[0])
    raise AssertionError("there is no cable")


def blocks(client: Client, lib: DaskSandbox) -> Any:
    """Blocks that are made here are scaled there."""
    where = addresses(client)
    made = client.map(block, ALL, workers=[where["one"]])
    wait(made)
    makers = holders(client, made)
    scaled = client.map(lib.scale, made, [3] * len(ALL), workers=[where["two"]])
    wait(scaled)
    here = sorted(os.listdir())  # noqa: PTH208
    there = client.submit(os.listdir, str(Path.cwd()), workers=[where["two"]], pure=False)
    return {
        "addresses": where,
        "makers": makers,
        "scalers": holders(client, scaled),
        "right": [
            bool((result == block(number) * np.uint8(3)).all())
            for number, result in zip(ALL, client.gather(scaled), strict=True)
        ],
        "files here": here,
        "files there": there.result(),
    }


def landing(client: Client, lib: DaskSandbox) -> Any:
    """Large blocks that are made here are read there."""

    def added(values: Any) -> tuple[float, int, int]:
        stats = lib.pool.stats
        before = stats.copied_bytes, stats.shared_bytes
        total = lib.add(values)
        copied, shared = stats.copied_bytes - before[0], stats.shared_bytes - before[1]
        return total, copied, shared

    one, two = (addresses(client)[name] for name in ("one", "two"))
    found = []
    for mebibytes in 1, 24:
        made = client.submit(np.ones, mebibytes << 17, workers=[one], pure=False)
        wait(made)
        before = client.run(received, workers=[two])[two]
        total, copied, shared = client.submit(added, made, workers=[two], pure=False).result()
        by_cable = client.run(received, workers=[two])[two] - before
        found.append([mebibytes, total, copied, shared, by_cable])
    return found


def crash(client: Client, lib: DaskSandbox) -> Any:
    """It happens there."""
    two = [addresses(client)["two"]]
    before = client.run(os.getpid, workers=two)
    try:
        client.submit(lib.crash, np.ones(3, np.uint8), workers=two).result()
    except CallCrash as error:
        fault = error.fault
        assert fault is not None
        assert fault.place is not None
        return {
            "function": error.function,
            "signal": fault.signal,
            "file": fault.place.file,
            "line": fault.place.line,
            "printed": fault.printed[-1],
            "goes on": client.run(os.getpid, workers=two) == before,
            "then": client.submit(lib.mean, b"\x01\x03", 2, workers=two).result(),
        }
    raise AssertionError("it did not crash")


def loss(client: Client, lib: DaskSandbox) -> Any:
    """Host two has done a part of the work, and is in the midst of another, when it is lost."""
    two = addresses(client)["two"]

    def checksum(number: int) -> int:
        if number >= 2 and get_worker().name == "two":
            lib.hang(1)
        return zlib.crc32(lib.scale(block(number), 3))

    def hanging() -> int:
        return client.run(lambda dask_worker: len(dask_worker.state.executing), workers=[two])[two]

    rather = {"workers": [two], "allow_other_workers": True}
    with dask.annotate(executor="pageferry", resources=lib.resources):
        early = client.map(checksum, ALL[:2], **rather)
        wait(early)
        lost = len(client.has_what([two])[two])
        late = client.map(checksum, ALL[2:], **rather)
    until(hanging, "it gets nothing to do")
    say("at work")
    until(lambda: two not in client.scheduler_info()["workers"], "it is not missed")
    work = early + late
    sums = client.gather(work)
    return {
        "lost": lost,
        "right": sums == [zlib.crc32(block(number) * np.uint8(3)) for number in ALL],
        "done by": holders(client, work),
        "left": addresses(client),
    }


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


SCENES = {scene.__name__: scene for scene in (blocks, landing, crash, loss)}

if __name__ == "__main__":
    with Client(sys.argv[1]) as present:
        present.wait_for_workers(2, timeout=60)
        with sandbox("tasks.c", pool="256M") as library:
            for line in sys.stdin:
                present.wait_for_workers(2, timeout=60)
                say(SCENES[line.strip()](present, library))

"""Brighten the tiles of a picture, in virtual machines of Dask's workers: python3 tiles.py."""

from pathlib import Path

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

from vmm import CallError
from vmm.dask import sandbox

if __name__ == "__main__":
    # Of a cluster that is there: with Client("tcp://scheduler:8786") as client:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        # Compiled here, once; when this returns, each worker has it in machines of its own.
        lib = sandbox(Path(__file__).with_name("tiles.c"), timeout=60, pool="1G")

        picture = da.full((4000, 6000), 100, chunks=1000, dtype=np.uint8)
        brighter = picture.map_blocks(lib.brighten, 150, dtype=np.uint8)  # 24 tiles, 24 calls
        print(brighter.mean().compute())  # 150.0

        tile = np.ones((1000, 1000), np.uint8)
        far = client.submit(lib.pixel, tile, y=1 << 30, x=0)
        try:
            far.result()
        except CallError as error:
            print(error.fault.signal, "in", error.fault.place.file)  # SIGSEGV in tiles.c
        print(client.submit(lib.pixel, tile, y=999, x=999).result())  # 1

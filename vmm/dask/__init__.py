"""Sandboxed C functions on Dask: a task is a call in a virtual machine of the worker that has it.

    from dask.distributed import Client
    from vmm.dask import sandbox

    client = Client("tcp://scheduler:8786")
    blur = sandbox("blur.c").blur
    result = images.map_blocks(blur, 1.5, dtype=images.dtype)
    futures = client.map(blur, pictures)

It needs `pip install 'pageferry[dask]'`, on the client, the scheduler and the workers. Nothing else
of pageferry loads this. `dask worker --preload vmm.dask` says at once whether a worker can run
machines; without it that is known when the first sandbox comes.

    needed       what has to be installed
    shapes       numbers that arrays' shapes give (pure)
    processors   what a program asks of a processor (pure)
    spec         a sandbox as it travels
    library      a sandbox in one process, and its machines
    here         those of this process
    clients      how a sandbox comes to a cluster
    landing      where arrays from other workers land
    running      calls that Dask may want no more
    plan         what a call does with its arguments
    function     a C function as a task
    sandboxes    what users make
    plugins      what workers and the scheduler do for it
"""

from vmm.dask import needed

needed.check()

from vmm.dask.function import Function  # noqa: E402
from vmm.dask.plugins import dask_setup  # noqa: E402
from vmm.dask.sandboxes import DaskSandbox, sandbox  # noqa: E402

__all__ = ["DaskSandbox", "Function", "dask_setup", "sandbox"]

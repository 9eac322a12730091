"""The system calls that are served, one module for each family."""

from vmm.linux.calls import copying, identity, io, memory, paths, signals, sockets, time, xattrs
from vmm.linux.calls.table import CALLS

__all__ = [
    "CALLS",
    "copying",
    "identity",
    "io",
    "memory",
    "paths",
    "signals",
    "sockets",
    "time",
    "xattrs",
]

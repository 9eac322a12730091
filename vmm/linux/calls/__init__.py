"""The system calls that are served, one module for each family."""

from vmm.linux.calls import (
    changing,
    copying,
    descriptors,
    identity,
    io,
    memory,
    paths,
    resources,
    signals,
    sockets,
    time,
    waiting,
    xattrs,
)
from vmm.linux.calls.table import CALLS

__all__ = [
    "CALLS",
    "changing",
    "copying",
    "descriptors",
    "identity",
    "io",
    "memory",
    "paths",
    "resources",
    "signals",
    "sockets",
    "time",
    "waiting",
    "xattrs",
]

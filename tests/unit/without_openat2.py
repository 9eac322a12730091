"""Show a root where the kernel refuses openat2: run with the root and the error's number.

A process of its own, since a filter of seccomp(2) stays for good.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path

from unit.linux_files_scene import make

from vmm.errors import ConfigError

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_OPENAT2 = 437


def refuse(call: int, number: int) -> None:
    """Let a system call fail with an error number."""
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the call's number
            (0x15, 0, 1, call),  # if it is this one
            (0x06, 0, 0, 0x00050000 | number),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    filter_ = Program(len(program) // 8, ctypes.addressof(code))
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filter_), 0, 0) == 0


def open_here() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


if __name__ == "__main__":
    refuse(_OPENAT2, int(sys.argv[2]))
    before = open_here()
    try:
        make(root=Path(sys.argv[1]))
    except ConfigError as error:
        print("ConfigError", error)
    print(open_here() - before, "open")

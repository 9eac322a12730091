"""Programs that run the command as on another host: with other mounts, as another user.

Or on another processor, with fewer privileges, or under a limit.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import Ended, pageferry

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
# personality(PER_LINUX32): uname says i686 from here on.
AS_I686 = """import ctypes
from vmm.command.cli import main
assert ctypes.CDLL(None).personality(8) != -1
main(prog_name='pageferry')"""
# capget(2) and capset(2) of ourselves: CAP_SYS_ADMIN, number 21, is given up.
WITHOUT_SYS_ADMIN = """import ctypes
from vmm.command.cli import main
libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
sets[0] &= ~(1 << 21); sets[1] &= ~(1 << 21)
assert libc.capset(header, sets) == 0
main(prog_name='pageferry')"""
# Imports first: nobody may not be allowed to read the interpreter's own files.
_AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
# unshare(2), and what the new namespace mounts is nobody else's; then what a shell does there.
_CODE = """import ctypes, os, subprocess
from vmm.command.cli import main
if {setup!r}:
    assert ctypes.CDLL(None).unshare(0x20000) == 0
    subprocess.run(['sh', '-e', '-c', 'mount --make-rprivate /; ' + {setup!r}], check=True)
{then}
main(prog_name='pageferry')"""


def after(setup: str, *arguments: str | Path, nobody: bool = False) -> Ended:
    """Run the command after a shell's set-up in a mount namespace of its own, and as nobody."""
    return pageferry(*arguments, code=_CODE.format(setup=setup, then=_AS_NOBODY if nobody else ""))


def limited(limit: str, value: int) -> str:
    """Return a program that runs the command under a resource limit."""
    return (
        f"import resource; from vmm.command.cli import main\n"
        f"resource.setrlimit(resource.{limit}, ({value}, {value}))\n"
        f"main(prog_name='pageferry')"
    )

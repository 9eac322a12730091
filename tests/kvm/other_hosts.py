"""Programs that run the command as on another host: as another user, or with other mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import Ended, pageferry

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
# Imports first: nobody may not be allowed to read the interpreter's own files.
_AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
# unshare(2), and what the new namespace mounts is nobody else's; then what a shell does there.
_CODE = """import ctypes, os, subprocess
from vmm.cli import main
if {setup!r}:
    assert ctypes.CDLL(None).unshare(0x20000) == 0
    subprocess.run(['sh', '-e', '-c', 'mount --make-rprivate /; ' + {setup!r}], check=True)
{then}
main(prog_name='pageferry')"""


def after(setup: str, *arguments: str | Path, nobody: bool = False) -> Ended:
    """Run the command after a shell's set-up in a mount namespace of its own, and as nobody."""
    return pageferry(*arguments, code=_CODE.format(setup=setup, then=_AS_NOBODY if nobody else ""))

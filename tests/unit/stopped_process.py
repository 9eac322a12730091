"""A program of this system, stopped before its first instruction: what it finds then."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# It lets itself be traced (PTRACE_TRACEME), has its addresses laid out without chance
# (ADDR_NO_RANDOMIZE), and becomes the program, which stops then.
_CODE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.personality(0x0040000)
assert libc.ptrace(0, 0, None, None) == 0
os.execve(sys.argv[1], [os.fsencode(a) for a in sys.argv[3:]], dict(
    entry.split("=", 1) for entry in sys.argv[2].split("\\n") if entry))
"""


class StoppedProcess:
    """It. Its memory can be read, and what the kernel says about it."""

    def __init__(self, pid: int) -> None:
        self._files = Path("/proc", str(pid))
        self._memory = os.open(self._files / "mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._memory)

    def read(self, start: int, end: int) -> bytes:
        data = os.pread(self._memory, end - start, start)
        assert len(data) == end - start
        return data

    @property
    def maps(self) -> list[tuple[int, int, str, str]]:
        """Its mappings: first and last address, rights, name."""
        found = []
        for line in (self._files / "maps").read_text().splitlines():
            addresses, rights, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(word, 16) for word in addresses.split("-"))
            found.append((start, end, rights[:3], name[0] if name else ""))
        return found

    @property
    def rsp(self) -> int:
        return int((self._files / "syscall").read_text().split()[-2], 16)

    @property
    def heap(self) -> int:
        """Where its heap begins."""
        return int((self._files / "stat").read_text().rpartition(")")[2].split()[44])

    @property
    def auxiliary(self) -> dict[int, int]:
        data = (self._files / "auxv").read_bytes()
        return dict(struct.iter_unpack("<QQ", data))


@contextmanager
def stopped(
    path: Path, argv: Sequence[str] = ("program",), envp: Sequence[str] = ()
) -> Iterator[StoppedProcess]:
    """Start a program and stop it at once; it is killed after the block."""
    process = subprocess.Popen([sys.executable, "-c", _CODE, path, "\n".join(envp), *argv])
    try:
        _, status = os.waitpid(process.pid, 0)
        assert os.WIFSTOPPED(status), "this system lets nobody trace its own children"
        seen = StoppedProcess(process.pid)
        try:
            yield seen
        finally:
            seen.close()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

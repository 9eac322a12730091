"""The real kernel's answers to memory calls, in a child process of its own.

Read line by line: a list of calls as JSON, each a name, its arguments, and what the model answers;
written: each one's answer, and what /proc/self/maps has in the end. All of it happens in PAGES
pages, with a page at either side that is never joined to anything. What the kernel places
elsewhere is moved to where the model has it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

PAGE, PAGES = 4096, 48
BASE = 0x2000000000
END = BASE + PAGES * PAGE
_NORESERVE, _SHARED, _ANONYMOUS, _FIXED = 0x4000, 1, 0x20, 0x10
_MOVE = 3  # MREMAP_MAYMOVE | MREMAP_FIXED

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25}


def call(name: str, *arguments: int) -> int:
    """Make a system call; return its result, or -errno."""
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(NUMBERS[name], *[ctypes.c_uint64(a) for a in arguments])
    return int(result) if result != -1 else -ctypes.get_errno()


def clear() -> None:
    call("munmap", BASE - PAGE, (PAGES + 2) * PAGE)
    for guard in (BASE - PAGE, END):
        call("mmap", guard, PAGE, 0, _SHARED | _ANONYMOUS | _FIXED, 2**64 - 1, 0)


def one(name: str, arguments: list[int], expected: int) -> int:
    if name == "mmap":
        address, length, prot, flags = arguments
        result = call("mmap", address, length, prot, flags | _NORESERVE, 2**64 - 1, 0)
        if result >= 0 and not BASE <= result < END:
            size = -(-length // PAGE) * PAGE
            if expected < 0:
                call("munmap", result, size)
                return expected
            result = call("mremap", result, size, size, _MOVE, expected)
        return result
    result = call(name, *arguments)
    if name == "mremap" and result >= 0 and not BASE <= result < END:
        old, old_size, new_size = (-(-a // PAGE) * PAGE for a in arguments[:3])
        if expected < 0:
            call("mremap", result, new_size, old_size, _MOVE, old)
            return expected
        result = call("mremap", result, new_size, new_size, _MOVE, expected)
    return result


def pages() -> dict[int, int]:
    """Return each mapped page's protection."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, access = line.split()[:2]
        low, high = (int(bound, 16) for bound in bounds.split("-"))
        for address in range(max(low, BASE), min(high, END), PAGE):
            found[address] = sum(bit for bit, a in zip((1, 2, 4), access, strict=False) if a != "-")
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        clear()
        answers = [one(*wanted) for wanted in json.loads(line)]
        print(json.dumps([answers, sorted(pages().items())]), flush=True)

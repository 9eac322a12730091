"""What a call takes, counted: Python's calls, and the kernel's. Times drift, counts do not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from vmm import Sandbox
from vmm.linux.machine import LinuxMachine

Elf = Callable[[str], Path]
pytestmark = pytest.mark.smaller_in_lanes("as many calls there, but they take longer")

# At most, of functions in Python and of those in C that Python calls. Measured with Python 3.11: a
# later one inlines more. One more of either is 0.05 to 0.1 us; what takes less may take less here.
EMPTY = 150, 100
PUT_BACK = 42, 30
READ = 9, 50  # more, where the kernel does not look for pages itself (before Linux 6.7)
TIMES = 20  # in some of them a thread of ours has been busy


def fewest(call: Callable[[], object]) -> tuple[int, int]:
    """Return how many functions in Python, and in C, a call calls: the fewest of a few times."""
    found = []
    for _ in range(TIMES):
        events: Counter[str] = Counter()

        def see(_: FrameType, event: str, __: object, events: Counter[str] = events) -> None:
            events[event] += 1

        sys.setprofile(see)
        try:
            call()
        finally:
            sys.setprofile(None)
        found.append((events["call"] - 1, events["c_call"] - 1))
    return min(found)


def test_a_call_of_numbers_calls_no_more_functions_than_it_did(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("deeds"), pool="8M") as lib:
        add = lib["add"]
        add(1, 2)
        python, c = fewest(lambda: add(1, 2))
        assert python <= EMPTY[0]
        assert c <= EMPTY[1]


@pytest.mark.parametrize("scans", [True, False])
def test_putting_back_calls_no_more_functions_than_it_did(
    sandboxed: Elf, monkeypatch: pytest.MonkeyPatch, scans: bool
) -> None:
    if not scans:
        monkeypatch.setattr("vmm.memory.written._PAGEMAP_SCAN", 0)  # ENOTTY
    with Sandbox(sandboxed("deeds"), pool="8M", fresh=True) as lib:
        _put_back(lib)


def _put_back(lib: Sandbox) -> None:
    lib["add"](1, 2)
    (worker,) = lib._crew.workers
    machine = worker.machine
    assert isinstance(machine, LinuxMachine)
    assert machine.guest.kept is not None
    reads = not machine.guest.kept.rewind._written.scans
    python, c = fewest(machine.put_back)
    assert python <= PUT_BACK[0] + reads * READ[0]
    assert c <= PUT_BACK[1] + reads * READ[1]


# ---- System calls ----

_PTRACE_CONT, _PTRACE_GETREGS, _PTRACE_SYSCALL, _PTRACE_SEIZE, _PTRACE_INTERRUPT = (
    *(7, 12, 24),
    *(0x4206, 0x4207),
)
_TRACESYSGOOD, _KILL_WITH_US = 1, 1 << 20
_ORIG_RAX = 15  # in struct user_regs_struct
_IOCTL, _SIGPROCMASK, _FUTEX, _GETPPID, _PREAD = 16, 14, 202, 110, 17
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long

CALLS = """
    import os, sys
    from vmm import Sandbox
    with Sandbox(sys.argv[1], pool="8M", fresh=sys.argv[2] == "fresh") as lib:
        add = lib["add"]
        for _ in range(50):
            add(1, 2)
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(int(sys.argv[3])):
            os.getppid()
            add(1, 2)
        os.getppid()
"""


def system_calls(child: subprocess.Popen[str]) -> list[Counter[int]]:
    """Return the system calls of a child's main thread between two getppid's, by number."""
    pid, found = child.pid, list[Counter[int]]()
    registers = (ctypes.c_uint64 * 27)()

    def ask(what: int, address: int = 0, data: int = 0) -> None:
        if _ptrace(what, pid, address, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace({what})")

    ask(_PTRACE_SEIZE, 0, _TRACESYSGOOD | _KILL_WITH_US)
    ask(_PTRACE_INTERRUPT)
    os.waitpid(pid, 0)
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    entering, passed_on = True, 0
    while True:
        ask(_PTRACE_SYSCALL, 0, passed_on)
        passed_on = 0
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            child.returncode = os.WEXITSTATUS(status)
            return found[:-1]
        assert os.WIFSTOPPED(status), status
        stopped = os.WSTOPSIG(status)
        if stopped == signal.SIGTRAP | 0x80:
            if entering:
                ask(_PTRACE_GETREGS, 0, ctypes.addressof(registers))
                number = registers[_ORIG_RAX]
                if number == _GETPPID:
                    found.append(Counter())
                elif found:
                    found[-1][number] += 1
            entering = not entering
        elif not status >> 16:
            passed_on = stopped


@pytest.mark.parametrize(("how", "more"), [("plain", 0), ("fresh", 4)])
def test_a_call_makes_as_many_system_calls_as_it_must(sandboxed: Elf, how: str, more: int) -> None:
    """KVM_RUN, and this thread's signals blocked and unblocked. Fresh: where the program may have
    written (the system area, its data, its stack: before Linux 6.7 that is read), and the registers
    of KVM_SET_XSAVE.
    """
    program = textwrap.dedent(CALLS)
    command = [sys.executable, "-c", program, str(sandboxed("deeds")), how, str(TIMES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        found = system_calls(child)
    assert child.returncode == 0
    assert len(found) == TIMES
    for each in found:
        del each[_FUTEX]  # of who has Python's own lock
    least = min(found, key=Counter.total)
    assert least.keys() <= {_IOCTL, _SIGPROCMASK, _PREAD}
    assert least[_SIGPROCMASK] == 2
    assert least[_IOCTL] + least[_PREAD] == 1 + more

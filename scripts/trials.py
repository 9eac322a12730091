"""Which of the kernel's KVM selftests are run, why, and what became of one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from vmm.sizes import format_size

KSFT_SKIP = 4  # tools/testing/selftests/kselftest.h
_TAIL = 1 << 16  # bytes of a test's output that are looked at: its end
_REAP_SECONDS = 10
_INTERNAL_ERROR = r"INTERNAL_ERROR|exit 17\b"  # 17 is KVM_EXIT_INTERNAL_ERROR


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A way to fail that was traced to the emulation of ring 0.

    state   the outcome's
    said    a regular expression that is found in what the test said
    why     what was seen
    """

    state: str
    said: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A test, how it is run, and what a host that passes it has shown.

    limit   seconds after which it is killed, on real hardware
    memory  bytes that the machine must have for it, where that is more than a lane may have
    heavy   whether Bochs takes over ten minutes for it: there it is run only if it is named
    """

    test: str
    arguments: tuple[str, ...]
    limit: int
    qualifies: str
    known: tuple[Known, ...] = ()
    memory: int = 0
    heavy: bool = False

    @property
    def title(self) -> str:
        """The command line, which tells two trials of one test apart."""
        return " ".join((self.test, *self.arguments))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial.

    state   "passed", "skipped", "failed", "timed out", "not built" or "not run"
    detail  why, as the test or its compiler said it
    """

    title: str
    state: str
    seconds: float
    detail: str


_LIVELOCK = Known(
    "timed out",
    "",
    "vmcall and vmmcall are patched and executed again for ever: KVM_RUN does not return by itself",
)
_BREAKPOINT = Known("failed", _INTERNAL_ERROR, "int3 ends in KVM_EXIT_INTERNAL_ERROR")

# Those that take long come last: in an emulator, some take minutes.
TRIALS = (
    Trial(
        "memslot_modification_stress_test",
        ("-b", "1M", "-i", "200"),
        60,
        "other slots come and go while a vCPU writes: what granting a window does",
    ),
    Trial(
        "demand_paging_test",
        ("-b", "1M"),
        30,
        "a guest's first access to anonymous memory",
    ),
    Trial(
        "demand_paging_test",
        ("-b", "1M", "-s", "shmem"),
        30,
        "the same to a memfd's pages, which is what guests share",
    ),
    Trial(
        "demand_paging_test",
        ("-b", "1M", "-u", "MISSING"),
        30,
        "an access waits until the host has supplied the page",
    ),
    Trial(
        "kvm_page_table_test",
        ("-b", "4M", "-s", "anonymous_thp"),
        30,
        "huge pages in the second-level tables: made, split, and merged again",
    ),
    Trial(
        "kvm_page_table_test",
        ("-b", "4M", "-s", "shmem"),
        30,
        "the same tables over a memfd",
    ),
    Trial(
        "sync_regs_test",
        (),
        30,
        "registers pass through kvm_run, which saves system calls at each exit",
    ),
    Trial(
        "set_sregs_test",
        (),
        30,
        "KVM_SET_SREGS takes what is valid and refuses the rest",
    ),
    Trial(
        "cr4_cpuid_sync_test",
        (),
        30,
        "the guest's CPUID follows its CR4",
    ),
    Trial(
        "cpuid_test",
        (),
        30,
        "the guest sees the CPUID it was given",
    ),
    Trial(
        "kvm_create_max_vcpus",
        (),
        60,
        "as many vCPUs can be made as KVM says",
    ),
    Trial(
        "userspace_io_test",
        (),
        30,
        "a port I/O exit is completed, also of a string instruction: the PIO doorbell",
    ),
    Trial(
        "emulator_error_test",
        (),
        30,
        "an instruction that KVM cannot emulate is an exit that says so, and no hang",
    ),
    Trial(
        "fix_hypercall_test",
        (),
        20,
        "either vendor's hypercall instruction works: the hypercall doorbell",
        (_LIVELOCK,),
    ),
    Trial(
        "kvm_pv_test",
        (),
        20,
        "hypercalls that a guest was not offered are refused",
        (_LIVELOCK,),
    ),
    Trial(
        "state_test",
        (),
        60,
        "a vCPU's state is read, and written to a new one, without loss",
    ),
    Trial(
        "debug_regs",
        (),
        30,
        "single-stepping and breakpoints from outside: the step trace",
        (_BREAKPOINT,),
    ),
    Trial(
        "dirty_log_test",
        ("-M", "dirty-log", "-i", "3", "-I", "5"),
        60,
        "every page that a guest has written is in the dirty log",
        memory=1100 << 20,  # its guest has 1 GiB, whatever it is told
    ),
    Trial(
        "memslot_perf_test",
        ("-s", "64", "-l", "1", "-f", "2", "-e", "3"),
        90,
        "pages are taken from under a vCPU in chunks, and a slot that it uses is moved",
        heavy=True,
    ),
    Trial(
        "set_memory_region_test",
        (),
        90,
        "slots are moved and deleted under a running vCPU; as many as KVM says can be made",
        heavy=True,
    ),
)


def too_large(trial: Trial, memory: int) -> Outcome | None:
    """Return the outcome of a trial on a machine that has too little memory; None if it has enough.

    memory  the machine's, in bytes
    """
    if memory >= trial.memory:
        return None
    need, have = format_size(trial.memory), format_size(memory)
    return Outcome(trial.title, "skipped", 0.0, f"not started: it needs {need}, here are {have}")


def run(trial: Trial, program: Path, limit: float) -> Outcome:
    """Run a test for at most `limit` seconds; none of its processes outlives the call."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            test = subprocess.Popen(
                [program, *trial.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=tempfile.gettempdir(),
                start_new_session=True,  # so that its children can be killed with it
            )
        except OSError as error:
            return Outcome(trial.title, "failed", 0.0, f"it cannot be started: {error.strerror}")
        status = _wait(test, limit)
        seconds = round(time.monotonic() - start, 1)
        return judge(trial, status, seconds, _tail(output))


def _wait(test: subprocess.Popen[bytes], limit: float) -> int | None:
    """Return the exit status of a test; None if it had to be killed for its time."""
    try:
        return test.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(test.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            test.wait(_REAP_SECONDS)  # a kernel that will not let go of it must not keep us


def _tail(file: IO[bytes]) -> str:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL))
    return file.read().decode(errors="replace")


def judge(trial: Trial, status: int | None, seconds: float, output: str) -> Outcome:
    """Return the outcome that a test's exit status and its output are.

    status  as Popen has it: minus the signal's number; None if the test was killed for its time
    """
    if status is None:
        last = f"; its last line: {line}" if (line := last_line(output)) else ""
        return Outcome(trial.title, "timed out", seconds, f"killed after {seconds:.0f} s{last}")
    if status == 0:
        return Outcome(trial.title, "passed", seconds, "")
    if status == KSFT_SKIP:
        return Outcome(trial.title, "skipped", seconds, skip_reason(output))
    said = assertion(output) or last_line(output) or "it said nothing"
    if status < 0:
        said = f"killed by {_signal(-status)}: {said}"
    return Outcome(trial.title, "failed", seconds, said)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(output: str) -> str:
    """Return the last line of a program's output that is not blank."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    return next((line for line in reversed(lines) if line), "")


def skip_reason(output: str) -> str:
    """Return why a test skipped itself: what follows "# SKIP" in its report."""
    found = re.findall(r"# SKIP\b[\s-]*(.*)", output)
    return found[-1].strip() if found and found[-1].strip() else "it did not say why"


_FAILURE = "==== Test Assertion Failure ===="
_FRAME = re.compile(r"\s+\d+\t")


def assertion(output: str) -> str:
    """Return a failed assertion's place and message; nothing if there is none.

    It is "FILE:LINE: CONDITION", the process's numbers, a backtrace, and the message, if there is
    one; all of it is indented. Without addr2line there are a shell's complaints in between.
    """
    _, found, rest = output.partition(_FAILURE)
    if not found:
        return ""
    lines = rest.splitlines()[1:]
    place, _, condition = lines[0].strip().partition(": ") if lines else ("", "", "")
    after = itertools.dropwhile(lambda line: not line.startswith("  pid="), lines)
    kept = [line for line in list(after)[1:] if not _noise(line)]
    message = [line.strip() for line in itertools.takewhile(lambda line: line[:1].isspace(), kept)]
    return f"{Path(place).name}: {' '.join(message) or condition}"


def _noise(line: str) -> bool:
    return bool(_FRAME.match(line)) or "addr2line" in line


def expected(trial: Trial, outcome: Outcome) -> str | None:
    """Return what is known of this outcome on hosts that emulate ring 0; None if nothing is.

    A failure of another kind is news there as it is anywhere.
    """
    for known in trial.known:
        if known.state == outcome.state and re.search(known.said, outcome.detail):
            return known.why
    return None

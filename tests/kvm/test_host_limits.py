"""What the host's limits do to a run: an error for whom it concerns, and nobody else is stopped.

Each in a process of its own, which has the limit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import one_line, pageferry, start

Elf = Callable[[str], Path]

# As a user who may start no task more: root has no such limit.
NO_MORE_TASKS = """import os, resource, sys
from vmm import Monitor
def no_more_tasks():
    os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
"""


def limited(name: str, value: int) -> str:
    """Return a command that sets a limit, and is pageferry then."""
    return (
        f"import resource; resource.setrlimit(resource.{name}, ({value}, {value}))\n"
        "from vmm.command.cli import main; main(prog_name='pageferry')"
    )


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user, whom the limit on tasks is for")


def test_a_time_out_comes_although_the_queue_of_signals_is_full(test_guest: Elf) -> None:
    began = time.monotonic()
    code = limited("RLIMIT_SIGPENDING", 0)
    ended = pageferry("run", test_guest("spin"), "--timeout", "0.5", code=code)
    assert ended.code == 124
    assert "still running after 0.5 seconds" in one_line(ended.err)
    assert time.monotonic() - began < 20


def test_files_that_may_not_be_that_large_are_an_error_with_advice(test_guest: Elf) -> None:
    ended = pageferry("run", test_guest("says_hello"), code=limited("RLIMIT_FSIZE", 100_000))
    assert ended.code == 1
    assert "ulimit -f" in one_line(ended.err)


@pytest.mark.not_in_ept("tasks are the kernel's, whatever the hardware")
def test_a_machine_for_which_there_is_no_task_stops_and_the_others_go_on(test_guest: Elf) -> None:
    """With newer kernels its first KVM_RUN would start one; those that have run have theirs."""
    as_root()
    code = f"""{NO_MORE_TASKS}
with Monitor(pool="16M", console=lambda name, line: None) as m:
    old = m.spawn({str(test_guest("says_and_waits"))!r}, name="old", window="2M")
    m.run(10)
    new = m.spawn({str(test_guest("says_hello"))!r}, name="new", window="2M")
    m.host.send(old, tag=7)
    no_more_tasks()
    m.run(10)
    print(old.exit_code, new.exit_code, new.fault)
"""
    ended = pageferry(code=code)
    assert ended.code == 0, ended.err
    if ended.out.startswith("7 3 None"):  # an older kernel needs none
        return
    assert ended.out.startswith("7 None new: the kernel had no task left for it")
    assert "pids.max" in ended.out


@pytest.mark.not_in_ept("tasks are the kernel's, whatever the hardware")
def test_a_fault_is_explained_although_there_is_no_thread_to_be_had(
    test_guest: Elf, guest_elf: Elf
) -> None:
    as_root()
    code = f"""{NO_MORE_TASKS}
with Monitor(pool="16M", console=lambda name, line: None) as m:
    other = m.spawn({str(test_guest("says_and_waits"))!r}, name="other", window="2M")
    victim = m.spawn({str(test_guest("dies_with_mail"))!r}, name="victim", window="2M")
    m.run(10)
    m.host.lend(victim, m.host.alloc(4096))
    m.host.send(other, tag=7)
    no_more_tasks()
    m.run(10)
    print(other.exit_code, victim.fault)
"""
    ended = pageferry(code=code)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("7 victim: #PF page fault, write of 0x10")


@pytest.mark.not_in_ept("tasks are the kernel's, whatever the hardware")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_without_threads_is_refused_with_advice_and_nothing_lost(
    test_guest: Elf, workers: int
) -> None:
    as_root()
    code = f"""{NO_MORE_TASKS}
from vmm import ResourceError
m = Monitor(pool="16M", console=lambda name, line: None, workers={workers})
machine = m.spawn({str(test_guest("says_hello"))!r}, name="m", window="2M")
no_more_tasks()
try:
    m.run(10)
except ResourceError as error:
    print(machine.state.value, error)
m.close()
"""
    ended = pageferry(code=code)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("ready no thread for the clock: raise the limits on tasks")


# Raises a signal as the last thing before a KVM_RUN, when Python has looked for signals already.
PRELOADED = """#include <signal.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...), runs;
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (!real)
        real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    if (request == 0xAE80 && getenv("ARMED") && ++runs == 1)
        raise(SIGUSR1);
    return real(fd, request, argument);
}
"""


@pytest.mark.not_in_ept("when a signal comes, whatever the hardware")
@pytest.mark.smaller_in_lanes("not at all: there is no compiler")
def test_a_signal_that_comes_just_before_a_machine_is_entered_is_handled_at_once(
    test_guest: Elf, tmp_path: Path
) -> None:
    compiler = shutil.which("cc")
    if compiler is None or "PAGEFERRY_LANE" in os.environ:
        pytest.skip("no C compiler that links the system's library")
    source, library = tmp_path / "raise.c", tmp_path / "raise.so"
    source.write_text(PRELOADED)
    flags = ["-shared", "-fPIC", "-D_GNU_SOURCE"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True)
    code = f"""import os, signal, time
from vmm import Monitor
class Now(BaseException): pass
def handler(number, frame):
    raise Now
signal.signal(signal.SIGUSR1, handler)
with Monitor(pool="16M") as m:
    m.spawn({str(test_guest("spin"))!r}, name="s", window="2M")
    began = time.monotonic()
    os.environ["ARMED"] = "yes"
    try:
        m.run(30)
    except Now:
        print("handled", time.monotonic() - began)
"""
    with start(code=code, env={"LD_PRELOAD": str(library)}) as process:
        out, err = process.communicate(timeout=60)
    assert out.startswith("handled"), err
    assert float(out.split()[1]) < 2


@pytest.mark.not_in_ept("tasks are the kernel's, whatever the hardware")
@pytest.mark.parametrize("kind", ["Sandbox", "Pool"])
def test_a_call_for_which_there_is_no_thread_is_refused_and_never_made(
    sandboxed: Elf, kind: str
) -> None:
    as_root()
    code = f"""{NO_MORE_TASKS}
from vmm import {kind}, ResourceError
lib = {kind}({str(sandboxed("library"))!r}, pool="16M", machines=2)
lib.counter()
limit = resource.getrlimit(resource.RLIMIT_NPROC)
os.setresuid(65534, 65534, 0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, limit[1]))
submit = lib.counter.submit if {kind!r} == "Sandbox" else lambda: lib.submit("counter")
for _ in range(3):
    try:
        submit()
    except ResourceError as error:
        said = str(error)
os.setresuid(0, 0, 0)
resource.setrlimit(resource.RLIMIT_NPROC, limit)
print(submit().result(), lib.stats.calls, said)
lib.close()
"""
    ended = pageferry(code=code)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("2 2 a call in another thread: no thread can be started")


@pytest.mark.not_in_ept("tasks are the kernel's, whatever the hardware")
def test_a_machine_for_calls_for_which_there_is_no_task_is_no_crash_of_a_function(
    sandboxed: Elf,
) -> None:
    as_root()
    code = f"""{NO_MORE_TASKS}
from vmm import CallCrash, ResourceError, Sandbox
lib = Sandbox({str(sandboxed("keeper"))!r}, pool="16M")
try:
    lib.crash()
except CallCrash:
    pass
limit = resource.getrlimit(resource.RLIMIT_NPROC)
os.setresuid(65534, 65534, 0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, limit[1]))
for _ in range(2):
    try:
        print(lib.twice(4), end=" ")
    except ResourceError as error:
        print(error.errno, error, end=" ")
os.setresuid(0, 0, 0)
resource.setrlimit(resource.RLIMIT_NPROC, limit)
print(lib.twice(5))
lib.close()
"""
    ended = pageferry(code=code)
    assert ended.code == 0, ended.err
    if ended.out == "8 8 10\n":  # an older kernel needs none
        return
    assert ended.out.count("11 a machine for calls: the kernel had no task left for it") == 2
    assert ended.out.endswith(" 10\n")

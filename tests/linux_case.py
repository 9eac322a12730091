"""A program's run as data: what it is given; and what it does with that on this system.

The same case is run as a machine, and both have to do the same.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {"PATH": "/bin", "HOME": "/root", "TZ": "UTC0"}
# Directories that there are when a program starts, in the directory that it is in.
DIRECTORIES = ("in", "out", "tmp")
_TIMEOUT = 60

# Becomes a program that gets ENOSYS for what no machine serves: processes, other programs, threads,
# sockets. The one `execve` that is let through is known by where its path lies in memory. To root,
# whom nothing else keeps from changing this system's files and devices, all is read-only but for
# the directory that it is in, and /tmp.
_BECOME = """
import ctypes, os, resource, signal, struct, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
REFUSED = (41, 53, 56, 57, 58, 322, 435)
EXECVE = 59
program, memory, count = os.fsencode(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
words = [os.fsencode(word) for word in sys.argv[4:]]
def array(texts):
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
path, argv, envp = ctypes.create_string_buffer(program), array(words[:count]), array(words[count:])
where = ctypes.addressof(path)
def step(code, yes, no, k):
    return struct.pack("<HBBI", code, yes, no, k)
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, DENY = 0x7FFF0000, 0x50000 | 38
steps = [step(LOAD, 0, 0, 0), step(EQUAL, 0, 4, EXECVE)]
steps += [step(LOAD, 0, 0, 16), step(EQUAL, 0, len(REFUSED) + 3, where & 0xFFFFFFFF)]
steps += [step(LOAD, 0, 0, 20), step(EQUAL, len(REFUSED), len(REFUSED) + 1, where >> 32)]
for place, number in enumerate(REFUSED):
    steps.append(step(EQUAL, len(REFUSED) - place, 0, number))
steps += [step(RETURN, 0, 0, ALLOW), step(RETURN, 0, 0, DENY)]
filter = ctypes.create_string_buffer(b"".join(steps))
rules = ctypes.create_string_buffer(
    struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(filter)))
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    assert result == 0, os.strerror(ctypes.get_errno())
def set_attributes(path, flags, *attributes):
    done(libc.syscall(442, -100, path, flags, struct.pack("<QQQQ", *attributes), 32))
if os.geteuid() == 0:
    NEW_NAMESPACE, BIND, PRIVATE, RECURSIVE, READ_ONLY = 0x20000, 0x1000, 0x44000, 0x8000, 1
    here = os.fsencode(os.getcwd())
    done(libc.unshare(NEW_NAMESPACE))
    done(libc.mount(None, b"/", None, ctypes.c_ulong(PRIVATE), None))
    places = b"/tmp", here
    for place in places:
        done(libc.mount(place, place, None, ctypes.c_ulong(BIND), None))
    set_attributes(b"/", RECURSIVE, READ_ONLY, 0, 0, 0)
    for place in places:
        set_attributes(place, 0, 0, READ_ONLY, 0, 0)
    os.chdir(here)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, rules, 0, 0) == 0, os.strerror(ctypes.get_errno())
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
libc.execve(path, argv, envp)
sys.exit(os.strerror(ctypes.get_errno()))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a program is given.

    argv     argv[0] as well
    files    by their names, below `in/`, which it finds in the directory that it starts in
    memory   how much it may have, in bytes, where that matters
    code     what it is expected to end with
    """

    name: str
    argv: tuple[str, ...]
    stdin: bytes = b""
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    memory: int | None = None
    code: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return ENVIRONMENT | dict(self.env)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program did; `files` are those below `out/`, by their names there."""

    code: int
    stdout: bytes
    stderr: bytes
    files: Mapping[str, bytes]


def run_here(case: Case, program: Path, directory: Path) -> Outcome:
    """Run a case on this system, in a directory of its own; its argv[0] is the case's."""
    for name in DIRECTORIES:
        (directory / name).mkdir()
    for name, data in case.files.items():
        (directory / "in" / name).write_bytes(data)
    environment = [f"{name}={value}" for name, value in case.environment.items()]
    words = [str(program), str(case.memory or 0), str(len(case.argv)), *case.argv, *environment]
    done = subprocess.run(
        [sys.executable, "-ISc", _BECOME, *words],
        input=case.stdin,
        capture_output=True,
        cwd=directory,
        timeout=_TIMEOUT,
    )
    written = {
        str(path.relative_to(directory / "out")): path.read_bytes()
        for path in sorted((directory / "out").rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    return Outcome(done.returncode, done.stdout, done.stderr, written)

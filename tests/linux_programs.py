"""Programs for Linux that the tests run, here and as machines.

They are built from tests/linux when they have changed, statically, with the system's C library
(glibc) and with ziglang's (musl).
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import guest_elfs
import pytest
from linux_case import Case
from linux_packages import NEEDS, is_there

from vmm.guest.compiler import BuildError, Compiler, find_compiler
from vmm.guest.elf import Source
from vmm.linux import kinds
from vmm.linux.kinds import Kind

SOURCES = Path(__file__).resolve().parent / "linux"
BUILT = SOURCES.parent / "_linux"
LIBCS = ("glibc", "musl")
BUSYBOX = Path("/bin/busybox")

_FLAGS = ("-O2", "-w", "-static")  # what compilers warn of depends on their versions
# What a program is linked with of Debian's static libraries, which are glibc's: the library, and
# the header that tells that it is installed.
_WITH_LINES = ("crashes", "throwing")
_LIBRARIES = {
    "sqlite_shell": ("sqlite3", "/usr/include/sqlite3.h"),
    "lua_runner": ("lua5.4", "/usr/include/lua5.4/lua.h"),
    "zstd_file": ("zstd", "/usr/include/zstd.h"),
}

_OTHERS = {*_LIBRARIES, *guest_elfs.PEERS}
PROGRAMS = tuple(sorted(path.stem for path in SOURCES.glob("*.c*") if path.stem not in _OTHERS))
JOBS = tuple(_LIBRARIES)


def linux_program(name: str, libc: str = "glibc") -> Path:
    """Return the path of a program, built if it has changed.

    Where something is missing that it is built with, the test is skipped, or fails if it must not
    be (PAGEFERRY_REQUIRE_KVM). One that was built before is taken where there is no compiler, as in
    a VM that the tests were copied into.
    """
    output, source = BUILT / libc / name, _source(name)
    if lacking := _lacking(source, libc):
        return output if output.exists() else _missing(lacking)
    compiler = _compiler(libc)
    assert compiler is not None
    options: tuple[str, ...] = ("-g",) if name in _WITH_LINES and libc == "glibc" else ()
    if name in _LIBRARIES:
        library, header = _LIBRARIES[name]
        options = (f"-I{Path(header).parent}", f"-l{library}")
    _build(source, output, compiler, options)
    return output


def busybox() -> Path:
    """Return the path of Debian's static busybox."""
    if not BUSYBOX.exists() or kinds.detect(_opened(BUSYBOX), "busybox") is not Kind.STATIC:
        return _missing(NEEDS["/usr/share/doc/busybox-static"])
    return BUSYBOX


def system_program(name: str) -> Path:
    """Return the path of a program of this system's, which its root shows."""
    path = Path("/usr/bin") / name
    return path if path.exists() else _missing(NEEDS.get(str(path), name))


def need(name: str) -> None:
    """Skip the test, or fail it, if something of `linux_packages.NEEDS` is not there."""
    if not is_there(name):
        _missing(NEEDS[name])


def build_linux_programs(libcs: Sequence[str] = LIBCS) -> None:
    """Build all that can be built here: before a lane boots, which has no compiler."""
    for libc in libcs:
        for name in (*PROGRAMS, *JOBS):
            if _lacking(_source(name), libc) is None:
                linux_program(name, libc)


def _source(name: str) -> Path:
    (source,) = SOURCES.glob(f"{name}.c*")
    return source


def _opened(path: Path) -> Source:
    return Source.of(path.read_bytes())


def _lacking(source: Path, libc: str) -> str | None:
    """Return the package that would have to be installed to build a program, if one would."""
    if _compiler(libc) is None:
        return "gcc" if libc == "glibc" else "ziglang (of Python's)"
    if libc == "glibc" and source.suffix == ".cpp" and not is_there("c++"):
        return NEEDS["c++"]
    if source.stem in _LIBRARIES:
        _, header = _LIBRARIES[source.stem]
        return NEEDS[header] if libc != "glibc" or not is_there(header) else None
    return None


@cache
def _compiler(libc: str) -> Compiler | None:
    try:
        return find_compiler("cc" if libc == "glibc" else "ziglang")
    except BuildError:
        return None


def _build(source: Path, output: Path, compiler: Compiler, options: Sequence[str]) -> None:
    cpp = source.suffix == ".cpp"
    command = [*(compiler.for_linux_cpp if cpp else compiler.for_linux)]
    # ziglang would build its libraries once more for programs without debug information.
    command += ["-fno-sanitize=all"] if compiler.family == "zig" else []
    command += ["-s"] if compiler.family != "zig" and "-g" not in options else []
    command += ["-std=gnu++17" if cpp else "-std=gnu17", *_FLAGS, str(source), *options]
    command += ["-lstdc++"] if cpp and compiler.family != "zig" else []
    command += ["-lm"]
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))
    made_of = f"{command}\n{compiler.version}\n".encode() + headers + source.read_bytes()
    stamp, key = output.with_suffix(".stamp"), hashlib.sha256(made_of).hexdigest()
    if output.exists() and stamp.exists() and stamp.read_text() == key:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(f".{os.getpid()}")
    # Run above ziglang, it would know its own files by relative paths, and build its libraries once
    # more than for what is built elsewhere.
    done = subprocess.run(
        [*command, "-o", partial], cwd=output.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    partial.replace(output)
    stamp.write_text(key)


def _missing(package: str) -> Path:
    what = f"{package} is not installed"
    if os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1":
        pytest.fail(f"{what} (and PAGEFERRY_REQUIRE_KVM=1)", pytrace=False)
    pytest.skip(what)


# ---- What they are given ----

WORDS = b"the quick brown fox jumps over the lazy dog and the cat\n"
NUMBERS = b"".join(b"%06d\n" % (n * n % 1000003) for n in range(2000))
_SCRIPT = rb"""
local primes, sieve = {}, {}
for n = 2, 20000 do
  if not sieve[n] then
    primes[#primes + 1] = n
    for m = n * n, 20000, n do sieve[m] = true end
  end
end
print(#primes, primes[#primes], arg[1], _VERSION)
local words = {}
for line in io.lines("in/words") do
  for word in line:gmatch("%a+") do words[#words + 1] = word:upper() end
end
table.sort(words)
print(table.concat(words, " "))
print(string.format("%5.2f|%-8s|%x|%q", math.pi, "left", 255, "a\nb"), 7 // 2, 7 / 2, 1 << 40)
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i * i) end end)
print(co(), co(), co(), select("#", 1, nil, 3))
print(pcall(error, {code = 7}), pcall(function() local x = nil; return x.y end))
local out <close> = assert(io.open("out/lua.txt", "w"))
for i = 1, 1000 do out:write(i, " ", ("x"):rep(i % 10), "\n") end
print(collectgarbage("count") > 0, io.open("in/none"))
local text = io.read("a")
print(#text, (text:gsub("%d+", function(d) return "<" .. d .. ">" end)))
"""
_SQL = (
    "create table t(id integer primary key, name text, value real)",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) "
    "insert into t select i, printf('name %05d', i * 7919 % 20000), i * 0.5 from n",
    "create index by_name on t(name)",
    "select count(*), sum(value), min(name), max(name) from t",
    "select name, value from t where name like 'name 0001%' order by name",
    "begin",
    "delete from t where id % 3 = 0",
    "rollback",
    "update t set value = round(sqrt(abs(value)), 6) where id <= 10",
    "select id, value from t where id <= 10 order by value desc",
    "select group_concat(id, ';') from (select id from t order by name limit 20)",
    "select * from no_such_table",
    "vacuum",
    "pragma integrity_check",
    "select json_group_array(id), sqlite_version() from (select id from t limit 5)",
)

_FILES = {"words": WORDS, "numbers": NUMBERS}
CASES = (
    Case("stdio", ("stdio",), b"12 0xff word\nsecond line\n\nlast", code=7),
    Case("heap", ("heap", "64"), memory=64 << 20),
    Case("numbers", ("numbers",)),
    Case("sorting", ("sorting",)),
    Case("texts", ("texts",), env={"LANG": "C", "GREETING": "hello there"}),
    Case("jumps", ("jumps",), code=4),
    Case("beginnings", ("beginnings", "one", "", "three words"), env={"A": "1", "B": ""}, code=4),
    Case("vectors", ("vectors",)),
    Case("files", ("files",), files=_FILES),
    Case("calls_files", ("calls_files",), b"standard input", {"words": WORDS}),
    Case("calls_memory", ("calls_memory",), files={"words": WORDS}),
    Case("calls_rest", ("calls_rest",), code=300 & 0xFF),
    Case("shared", ("shared",)),
    Case("crashes", ("crashes", "return"), code=5),
    Case("throwing", ("throwing",), code=5),
    Case("streams", ("streams",), b"one\ntwo\n\nfour", _FILES),
)
# How a program may crash, and the signal that ends it.
CRASHES = {
    "segfault": "SIGSEGV",
    "read-only": "SIGSEGV",
    "unmapped": "SIGSEGV",
    "jump": "SIGSEGV",
    "data": "SIGSEGV",
    "noncanonical": "SIGSEGV",
    "divide": "SIGFPE",
    "illegal": "SIGILL",
    "breakpoint": "SIGTRAP",
    "privileged": "SIGSEGV",
    "overflow": "SIGSEGV",
    "abort": "SIGABRT",
    "term": "SIGTERM",
    "raise": "SIGUSR1",
    "pipe": "SIGPIPE",
}
CRASH_CASES = (
    *(
        Case(f"crash: {how}", ("crashes", how), code=-signal.Signals[name])
        for how, name in CRASHES.items()
    ),
    Case("crash: ignored pipe", ("crashes", "ignored pipe"), code=11),
    Case("crash: uncaught exception", ("throwing", "uncaught"), code=-signal.SIGABRT),
)
_WAL = (  # its index is a file that is mapped, shared, to be written
    "pragma journal_mode = wal",
    "create table t (n integer primary key, text)",
    "with recursive c (n) as (select 1 union all select n + 1 from c where n < 20000)"
    " insert into t select n, hex(n * n) from c",
    "update t set text = text || '!' where n % 3 = 0",
    "select count(*), sum(length(text)) from t",
    "pragma wal_checkpoint",
    "delete from t where n > 100",
    "select * from t where n > 97",
)
JOB_CASES = (
    Case("sqlite_shell", ("sqlite_shell", "out/test.db", *_SQL), code=1),
    Case("sqlite_shell", ("sqlite_shell", "out/wal.db", *_WAL)),
    Case(
        "lua_runner",
        ("lua_runner", "in/script.lua", "argument"),
        b"12 and 345\n",
        {"script.lua": _SCRIPT, "words": WORDS},
    ),
    Case("zstd_file", ("zstd_file", "in/numbers", "out/packed"), files={"numbers": NUMBERS * 40}),
)


if __name__ == "__main__":
    build_linux_programs()

"""The kernel's own KVM selftests, fetched as the distribution's source package and built.

Nothing is installed and nobody's code is kept here: the package with the kernel's source is
unpacked in the lanes' cache, and of its tests only the programs stay there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from vmm.errors import HostError
from vmm.host.cache import content_key
from vmm.nested import apt
from vmm.nested.cache import Cache
from vmm.nested.errors import LaneError
from vmm.nested.packages import Need, find_program

METAPACKAGE = "linux-source"  # depends on the source of the release's kernel, also on Ubuntu
STAGE = "selftests"

# What the tests are compiled from. Linked statically, they run also where there is another libc.
NEEDS = (
    Need("gcc", "gcc"),
    Need("make", "make"),
    Need("/usr/include/stdio.h", "libc6-dev"),
    Need("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    Need("/usr/include/linux/kvm.h", "linux-libc-dev"),
)

# Of the kernel's source: the tests, what their makefiles include, and the headers they use.
WANTED = (
    "Makefile",
    "scripts/subarch.include",
    "tools/arch/x86/include/",
    "tools/build/",
    "tools/include/",
    "tools/lib/",
    "tools/scripts/",
    "tools/testing/selftests/kselftest",
    "tools/testing/selftests/kvm/",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/rseq/",
)
_TESTS = Path("tools/testing/selftests/kvm")
_ARCHITECTURE = ("x86_64", "x86")  # the directory of our architecture's tests; the latter is newer
_NO_SSE = "-mno-sse"


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """Programs that were built, by the tests' names, and why others were not.

    version  of the kernel that they are from
    """

    version: str
    programs: dict[str, Path]
    missing: dict[str, str]


def check() -> None:
    """Raise HostError, with the command that helps, if this host cannot fetch or build them."""
    if find_program("apt-get") is None or find_program("dpkg") is None:
        raise HostError(
            "the selftests come in a Debian package, and this host has no apt-get",
            "use a Debian or Ubuntu machine, or a container of one",
        )
    if lacking := sorted({need.package for need in NEEDS if not need.met()}):
        raise HostError(
            f"building the selftests needs packages that are not installed ({', '.join(lacking)})",
            f"sudo apt-get install --no-install-recommends {' '.join(lacking)}",
        )


def built(cache: Cache, names: Sequence[str], *, sse: bool) -> Built:
    """Return the tests' programs, fetched and built if they are not in the cache.

    sse  build them as the kernel does, and not with guests that keep to the general registers

    Raises HostError or LaneError if they cannot be had.
    """
    recipe = Path(__file__).read_bytes()
    key = content_key(recipe, apt.os_release(), str(sse), *names)
    if re.search(r"\s", str(cache.root)):
        raise HostError(
            f"{cache.root}: make cannot build below a path with a space in it",
            "name another directory in $PAGEFERRY_CACHE",
        )
    stage = cache.root / f"{STAGE}-{key}"
    if not stage.is_dir():
        check()
    stage = cache.stage(
        STAGE, key, "the kernel's KVM selftests", lambda into: build(into, names, sse=sse)
    )
    facts = json.loads((stage / "facts.json").read_text())
    programs = {name: stage / name for name in names if (stage / name).is_file()}
    return Built(facts["version"], programs, facts["missing"])


def forget(cache: Cache) -> None:
    """Remove what was built, so that it is built anew from the package of today."""
    for path in cache.root.glob(f"{STAGE}-*"):
        shutil.rmtree(path, ignore_errors=True)


def build(into: Path, names: Sequence[str], *, sse: bool) -> None:
    """Fetch the source and put the tests' programs, and what is to be said of them, into `into`."""
    package, scratch, source = into / "package", into / "scratch", into / "source"
    for directory in (package, scratch, source):
        directory.mkdir()
    apt.unpack([_package()], package, scratch)
    version = unpack(_tarball(package), source)
    shutil.rmtree(package)
    missing = _compile(source, into, names, sse=sse)
    if len(missing) == len(names):
        raise LaneError(
            f"none of the selftests of Linux {version} could be built: {missing[names[0]]}"
        )
    facts = {"version": version, "missing": missing}
    (into / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(source)
    scratch.rmdir()


def _package() -> str:
    """Return the package with the source of the release's kernel."""
    if apt.known(METAPACKAGE):
        for name in apt.dependencies(METAPACKAGE):
            if name.startswith("linux-source-"):
                return name
    raise HostError(
        f"no package {METAPACKAGE} is known on this host ({apt.os_release()})",
        "fetch the package lists (sudo apt-get update), or use Debian or Ubuntu",
    )


def _tarball(package: Path) -> Path:
    found = [path for path in package.glob("usr/src/**/linux-source-*.tar.*") if path.is_file()]
    if len(found) != 1:
        raise LaneError(f"the kernel's source package has {len(found)} tarballs in it, not one")
    return found[0]


def wanted(member: str) -> str | None:
    """Return the path, below the kernel's own root, of a tarball's member that is to be unpacked.

    None for all others, and for a path that would lead elsewhere.
    """
    path = member.removeprefix("./").partition("/")[2]
    return path if path.startswith(WANTED) and ".." not in path.split("/") else None


def unpack(tarball: Path, into: Path) -> str:
    """Unpack what the tests need of the kernel's source, and return its version."""
    with tarfile.open(tarball, "r|*") as archive:
        for member in archive:
            name = wanted(member.name)
            contents = archive.extractfile(member) if name and member.isfile() else None
            if name and contents:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(contents.read())
                (into / name).chmod(member.mode & 0o777 | 0o600)
    if not (into / _TESTS / "Makefile").is_file():
        raise LaneError("the kernel's source package has no KVM selftests in it")
    return version((into / "Makefile").read_text())


def version(makefile: str) -> str:
    """Return the kernel's version, as its topmost makefile has it."""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", makefile, re.MULTILINE))
    return ".".join(found.get(part, "?") for part in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def compiler_flags(headers: str, *, sse: bool) -> list[str]:
    """Return what the compiler is told beyond what the tests' makefile tells it.

    headers  the text of the tests' own headers

    A kernel keeps to the general registers, and these guests are kernels; yet the makefile lets the
    compiler put SSE into them, which a host that emulates ring 0 cannot execute.
    """
    flags = [] if sse else [_NO_SSE]
    # Linux 6.1 stable has a test that uses the macro's later name.
    if "define TEST_ASSERT_EQ(" not in headers and "define ASSERT_EQ(" in headers:
        flags.append("-DTEST_ASSERT_EQ=ASSERT_EQ")
    return flags


def target(tests: Path, name: str) -> str | None:
    """Return a test's make target, relative to the output; None if this kernel has no such test."""
    for place in (name, *(f"{directory}/{name}" for directory in _ARCHITECTURE)):
        if (tests / f"{place}.c").is_file():
            return place
    return None


def _compile(source: Path, into: Path, names: Sequence[str], *, sse: bool) -> dict[str, str]:
    """Compile the tests into `into`; return why some are not there, by name."""
    tests, output = source / _TESTS, source / "out"
    output.mkdir()
    targets = {name: target(tests, name) for name in names}
    headers = "".join(path.read_text() for path in sorted((tests / "include").rglob("*.h")))
    flags = " ".join(compiler_flags(headers, sse=sse))
    wanted_targets = [str(output / place) for place in targets.values() if place]
    log = _make(tests, [f"OUTPUT={output}", f"USERCFLAGS={flags}", *wanted_targets])
    (into / "build.log").write_text(log)
    missing = {}
    for name, place in targets.items():
        if place is None:
            missing[name] = "this kernel's source has no such test"
        elif (output / place).is_file():
            shutil.move(output / place, into / name)
        else:
            missing[name] = why_not_built(log, name)
    return missing


def _make(tests: Path, arguments: list[str]) -> str:
    """Run make and return all it printed; what fails does not keep the rest from being built."""
    dropped = (
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "CFLAGS",
        "CPPFLAGS",
        "LDFLAGS",
        "ARCH",
        "OUTPUT",
    )
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    jobs = min(2, os.cpu_count() or 1)
    command = ["make", "-k", f"-j{jobs}", "USERLDFLAGS=-static", *arguments]
    result = subprocess.run(
        command,
        cwd=tests,
        env={**env, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return result.stdout


def why_not_built(log: str, name: str) -> str:
    """Return the line of make's output that says most about a test that was not built."""
    lines = [line.strip() for line in log.splitlines()]
    errors = [line for line in lines if "error:" in line or "undefined reference" in line]
    own = [line for line in errors if f"{name}.c:" in line]
    said = (own or errors or ["make did not say why"])[0]
    return re.sub(r"^\S*/(?=[^/\s]+\.[ch]:)", "", said)
